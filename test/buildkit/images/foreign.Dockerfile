# Two layers, of which the first becomes one that is not distributed.
FROM scratch
COPY busybox /bin/busybox
COPY passwd /etc/passwd
