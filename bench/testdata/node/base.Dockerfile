ARG BASE
FROM $BASE
RUN apt-get update && apt-get install -y --no-install-recommends nodejs && rm -rf /var/lib/apt/lists/*
# Debian's npm depends on 400 packages, which no image of Node has.
ADD npm-10.8.2.tgz /usr/lib/node_modules/
RUN mv /usr/lib/node_modules/package /usr/lib/node_modules/npm && ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/bin/npm
