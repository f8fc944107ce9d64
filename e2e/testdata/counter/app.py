import os

import redis
from flask import Flask

app = Flask(__name__)
store = redis.Redis(host="redis", port=int(os.environ.get("REDIS_PORT", "6379")))


@app.route("/")
def count():
    return f"This page was seen {store.incr('hits')} times.\n"
