const fs = require('fs')
const [from, to] = process.argv.slice(2)
fs.mkdirSync(to, { recursive: true })
for (const name of fs.readdirSync(from)) {
  fs.writeFileSync(`${to}/${name}`, fs.readFileSync(`${from}/${name}`, 'utf8').replace('{{title}}', process.env.TITLE))
}
