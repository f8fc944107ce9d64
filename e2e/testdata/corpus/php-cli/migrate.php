<?php
$db = new SQLite3('/var/www/html/app.db');
$db->exec('CREATE TABLE visitors (name TEXT)');
$db->exec("INSERT INTO visitors VALUES ('first'), ('second')");
