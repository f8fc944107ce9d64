package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
)

// device is a character device that every process gets.
type device struct {
	name         string
	major, minor uint32
}

// devices are the nodes in /dev, see Documentation/admin-guide/devices.txt of the Linux source.
var devices = []device{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

// links are the symbolic links in /dev.
var links = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
}

// supply is a file system that the process attaches where it alone sees it, to bind single files of it elsewhere:
// the device nodes, an empty directory, an empty file called nothing, and
// generated files of /etc.
type supply struct {
	fs *os.File
	// nodes are devices that kiln may not make, by name: those of the host instead.
	nodes map[string]*os.File
}

// newSupply makes a supply with the files, to which it adds.
func newSupply(files map[string]string) (*supply, error) {
	fs, err := mount.New("tmpfs", mount.NoSuid|mount.NoExec, mount.Option{Name: "mode", Value: "755"},
		mount.Option{Name: "size", Value: "1m"})
	if err != nil {
		return nil, err
	}
	s := &supply{fs: fs, nodes: map[string]*os.File{}}
	if err := s.fill(files); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *supply) fill(files map[string]string) error {
	dir := int(s.fs.Fd())
	for _, d := range devices {
		err := unix.Mknodat(dir, d.name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor)))
		if errors.Is(err, unix.EPERM) {
			if s.nodes[d.name], err = hostDevice(d); err == nil {
				continue
			}
		}
		if err == nil {
			err = unix.Fchmodat(dir, d.name, 0o666, 0)
		}
		if err != nil {
			return fmt.Errorf("make device %s: %w", d.name, err)
		}
	}
	if err := unix.Mkdirat(dir, "empty", 0o555); err != nil {
		return fmt.Errorf("make an empty directory: %w", err)
	}
	files["nothing"] = ""
	for name, content := range files {
		if err := writeFile(dir, name, content); err != nil {
			return fmt.Errorf("write %s for the sandbox: %w", name, err)
		}
	}
	return nil
}

func (s *supply) close() {
	s.fs.Close()
	for _, f := range s.nodes {
		f.Close()
	}
}

// null opens /dev/null by its node in the supply: what a process has at that path can be anything once it runs.
func (s *supply) null() (*os.File, error) {
	if f := s.nodes["null"]; f != nil {
		return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	}
	fd, err := unix.Openat(int(s.fs.Fd()), "null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	return os.NewFile(uintptr(max(fd, 0)), "null"), err
}

func writeFile(dir int, name, content string) error {
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return err
}

// hostDevice clones the mount of a device node of the host, which must be the device that its name says. The clone is read-only, which
// keeps the mode, the owner and the times of the node as they are, and lets the device be written to.
func hostDevice(d device) (*os.File, error) {
	fd, err := unix.Open("/dev/"+d.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), d.name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || uint64(st.Rdev) != unix.Mkdev(d.major, d.minor) {
		return nil, errors.New("the host's /dev/" + d.name + " is another device")
	}
	clone, err := mount.Clone(f, false)
	if err != nil {
		return nil, err
	}
	if err := mount.SetAttr(clone, mount.ReadOnly, false); err != nil {
		clone.Close()
		return nil, err
	}
	return clone, nil
}

// newDev returns the file system for /dev: links, and empty places for the devices and the file systems below it, and for a console.
func newDev(console bool) (*os.File, error) {
	fs, err := mount.New("tmpfs", mount.NoSuid|mount.NoDev, mount.Option{Name: "mode", Value: "755"},
		mount.Option{Name: "size", Value: "64m"})
	if err != nil {
		return nil, err
	}
	dir := int(fs.Fd())
	for _, l := range links {
		if err := unix.Symlinkat(l[1], dir, l[0]); err != nil {
			fs.Close()
			return nil, fmt.Errorf("make /dev/%s: %w", l[0], err)
		}
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := unix.Mkdirat(dir, name, 0o755); err != nil {
			fs.Close()
			return nil, fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	var files []string
	for _, d := range devices {
		files = append(files, d.name)
	}
	if console {
		files = append(files, "console")
	}
	for _, name := range files {
		if err := writeFile(dir, name, ""); err != nil {
			fs.Close()
			return nil, fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	return fs, nil
}
