const pad = require('left-pad');
// a remark
console.log(pad('hello', 10, '.'));
