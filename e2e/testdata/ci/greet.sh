#!/bin/sh
echo "hello $1, this is @VERSION@"
