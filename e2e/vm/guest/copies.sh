# The same builds where the kernel refuses overlays: on an overlay, as in a container.
mkdir lower upper work here
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work here
(cd here && LAYERS=4 exec sh -e /tests/builds.sh)
grep -q 'WARN: overlayfs cannot be used here' here/first.log
umount here
