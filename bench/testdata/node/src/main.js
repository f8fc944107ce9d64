const express = require('express');
const { formatISO } = require('date-fns');
const { range, map, Subject } = require('rxjs');
const _ = require('lodash');

const orders = new Subject();
const app = express();

app.get('/', (_req, res) => {
  const lines = [];
  range(1, 5).pipe(map((n) => n * n)).subscribe((n) => lines.push(n));
  res.json({ now: formatISO(new Date()), sum: _.sum(lines), version: 0 });
});
app.post('/orders', express.json(), (req, res) => {
  orders.next(_.pick(req.body, ['item', 'count']));
  res.sendStatus(204);
});
app.listen(process.env.PORT || 3000);
