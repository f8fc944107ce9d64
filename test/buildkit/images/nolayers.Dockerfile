FROM scratch
LABEL layers=none
