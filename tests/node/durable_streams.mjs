// The server of the package @durable-streams/server, as its authors have it. Prints its URL, then the path of each
// long poll that it holds. A line on its standard input ends the event streams that are open, as servers do every
// minute (§5.8). Ends with its standard input, so that none outlives a test run that was killed.
//
// Its one argument is JSON: the options of DurableStreamTestServer, and two more. The package sends all that there is
// as one answer, however long; the protocol lets a server send it in pieces (§5.6), and `pageSize` makes it so.
// `clockAhead` is in milliseconds: what has time to live has lived for so long.

import { DurableStreamTestServer } from "@durable-streams/server"

const { pageSize = Infinity, clockAhead = 0, ...options } = JSON.parse(process.argv[2])
const { now } = Date
Date.now = () => now() + clockAhead

const server = new DurableStreamTestServer({ host: "127.0.0.1", ...options })
const { store } = server

const read = store.read.bind(store)
store.read = (path, offset) => {
  const { messages, upToDate } = read(path, offset)
  return { messages: messages.slice(0, pageSize), upToDate: upToDate && messages.length <= pageSize }
}

const hold = store.waitForMessages.bind(store)
store.waitForMessages = (path, ...rest) => {
  const held = hold(path, ...rest)
  console.log(`held ${path}`)
  return held
}

process.stdin.on("end", () => process.exit())
process.stdin.on("data", () => server.activeSSEResponses.forEach((answer) => answer.end()))
console.log(await server.start())
