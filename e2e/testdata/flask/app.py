import os

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def home():
    return f"hello {request.args.get('name', 'world')}, from user {os.getuid()}\n"
