// Steptool does in a step what the programs of a base image cannot: each command is one system call or two that leave something behind of
// which no layer can know.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("steptool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "socket": // PATH: makes a socket in the place of a file
		if err := os.RemoveAll(args[1]); err != nil {
			return err
		}
		return unix.Mknod(args[1], unix.S_IFSOCK|0o600, 0)
	case "acl": // PATH: lets everybody write to what is made in a directory
		list := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255, 0x20, 0, 7, 0, 255, 255, 255, 255}
		return unix.Setxattr(args[1], "system.posix_acl_default", list, 0)
	case "setxattr": // PATH NAME VALUE
		return unix.Lsetxattr(args[1], args[2], []byte(args[3]), 0)
	case "listxattr": // PATH...
		for _, path := range args[1:] {
			b := make([]byte, 64<<10)
			n, err := unix.Llistxattr(path, b)
			if err != nil {
				return err
			}
			fmt.Printf("%s: %s\n", path, strings.ReplaceAll(string(b[:n]), "\x00", ";"))
		}
		return nil
	case "chattr": // PATH FLAGS: sets flags of linux/fs.h
		flags, err := strconv.ParseInt(args[2], 0, 32)
		if err != nil {
			return err
		}
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags))
	case "lsattr": // PATH...
		for _, path := range args[1:] {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			if err != nil {
				return err
			}
			fmt.Printf("%s: %#x\n", path, flags&0xfffff&^0x80000) // without extents
		}
		return nil
	case "send": // SOCKET DIR [FILE]: gives whoever connects the descriptor of a directory, and that of a file that is open for writing
		return send(args[1], args[2], args[3:])
	case "receive": // SOCKET NAME: takes them, waits until something has that name, makes a file in the directory and changes the other
		return receive(args[1], args[2])
	}
	return errors.New("what is " + args[0] + "?")
}

func send(socket, dir string, files []string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	rights := []int{int(d.Fd())}
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		rights = append(rights, int(f.Fd()))
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	_ = os.Remove(socket)
	if err := errors.Join(unix.Bind(s, &unix.SockaddrUnix{Name: socket}), unix.Listen(s, 1)); err != nil {
		return err
	}
	c, _, err := unix.Accept(s)
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(c, []byte("x"), unix.UnixRights(rights...), nil, 0); err != nil {
		return err
	}
	_, err = unix.Read(c, make([]byte, 1)) // until they have arrived
	return err
}

func receive(socket, name string) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	for unix.Connect(s, &unix.SockaddrUnix{Name: socket}) != nil {
		time.Sleep(10 * time.Millisecond)
	}
	b := make([]byte, 1024)
	_, n, _, _, err := unix.Recvmsg(s, make([]byte, 1), b, 0)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(b[:n])
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	if _, err := unix.Write(s, []byte("x")); err != nil {
		return err
	}
	for _, err := os.Stat(name); err != nil; _, err = os.Stat(name) {
		time.Sleep(10 * time.Millisecond)
	}
	if err := writable(fds[0]); err != nil {
		fmt.Println("make it writable:", err)
	}
	made, err := unix.Openat(fds[0], "made", unix.O_CREAT|unix.O_WRONLY, 0o644)
	fmt.Println("make a file:", made > 0, err)
	for _, fd := range fds[1:] {
		_, err := unix.Pwrite(fd, []byte("other"), 0)
		fmt.Println("write to a file:", err)
	}
	return nil
}

// writable makes the file system that a directory is the root of writable, for whoever has the privilege.
func writable(dir int) error {
	fd, err := unix.Fspick(dir, "", unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return errors.Join(unix.FsconfigSetFlag(fd, "rw"), unix.FsconfigReconfigure(fd))
}
