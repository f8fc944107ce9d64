# What tests use of docker.io's alpine: other files than busybox has, and the programs that they install.
FROM scratch AS files
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "/bin"]
COPY --chmod=755 adduser addgroup /bin/
COPY passwd group alpine-release /etc/
RUN mkdir -p /dev /home /proc /root /sys /sbin /usr/bin /usr/sbin /var/spool/mail /var/www && mkdir -m 1777 /tmp && chmod 700 /root
COPY --chmod=755 apk /sbin/apk
COPY programs /

FROM scratch
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY --from=files / /
CMD ["/bin/sh"]
