# Makes a page of a text: the first line is its title, a line with a # before it is a remark and is left out.
/^#/ { next }
!title { title = $0; print "<!doctype html><title>" title "</title><h1>" title "</h1><p>"; next }
/^$/ { print "<p>"; next }
{ print }
