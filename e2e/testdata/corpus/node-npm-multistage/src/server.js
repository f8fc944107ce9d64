const http = require('http')
const leftPad = require('left-pad')

const text = `${leftPad(7, 4, '0')} DEVELOPMENT\n`
if (process.argv.includes('--check')) {
  process.stdout.write(text)
} else {
  http.createServer((_, res) => res.end(text)).listen(3000)
}
