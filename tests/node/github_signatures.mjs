// GitHub's signatures as @octokit/webhooks-methods makes and verifies them. Prints where that is from, then an answer
// for each line on its standard input, which is JSON: the name of a function of the package, and its arguments.
// Ends with its standard input, so that none outlives a test run that was killed.

import { createInterface } from "node:readline"
import * as methods from "@octokit/webhooks-methods"

console.log("https://github.com/octokit/webhooks-methods.js")
for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...args] = JSON.parse(line)
  console.log(JSON.stringify(await methods[name](...args).catch((error) => ({ error: error.message }))))
}
