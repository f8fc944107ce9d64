# The same builds by an ordinary user.
mkdir /home/user/build
chown user /home/user/build
su user -c 'cd /home/user/build && HOME=/home/user LAYERS=4 exec sh -e /tests/builds.sh'
