#!/bin/sh
exec mariadb-admin --protocol=socket ping
