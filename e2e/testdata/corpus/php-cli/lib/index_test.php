<?php this is not PHP
