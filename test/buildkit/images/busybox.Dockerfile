# What tests use of docker.io's busybox, in one layer.
FROM scratch AS files
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "/bin"]
COPY --chmod=755 adduser addgroup /bin/
COPY passwd group /etc/
RUN mkdir -p /dev /home /proc /root /sys /usr/bin /usr/sbin /var/spool/mail /var/www && mkdir -m 1777 /tmp && chmod 700 /root

FROM scratch
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY --from=files / /
CMD ["sh"]
