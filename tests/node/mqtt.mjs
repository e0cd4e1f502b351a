// An MQTT broker as the package aedes has it. Prints its URL; ends with its standard input, so that none outlives a
// test run that was killed. Its one argument is the port, 0 for a free one.

import { createServer } from "node:net"
import { Aedes } from "aedes"

const broker = await Aedes.createBroker()
const server = createServer(broker.handle)

process.stdin.on("end", () => process.exit()).resume()
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`))
