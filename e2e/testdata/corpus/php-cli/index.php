<?php
$db = new SQLite3('/var/www/html/app.db', SQLITE3_OPEN_READONLY);
echo $db->querySingle('SELECT count(*) FROM visitors'), ' visitors, ', ini_get('memory_limit'), "\n";
