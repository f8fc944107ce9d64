FROM scratch
COPY busybox /hellofs
