package dirtree

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ErrMoved is the error of Leave if the directory that the Descent came from is no longer the parent.
var ErrMoved = errors.New("the directory was moved while it was read")

// Descent is a position in a directory tree. The directory that it is at is open, and so are the maxOpen-1 above it; those further up are
// opened again, by "..", on the way back. It is not safe for concurrent use.
type Descent struct {
	levels []level // the tree's own directory first
	closed int     // how many of the first levels are closed
}

// level is a directory between the top of the tree and the current position.
type level struct {
	file     *os.File // nil while it is closed
	dev, ino uint64   // once it is closed
}

// NewDescent returns a Descent at top, which is open for reading. Close closes it.
func NewDescent(top *os.File) *Descent { return &Descent{levels: []level{{file: top}}} }

// File returns the directory that the Descent is at. It is valid until the next call of another method.
func (d *Descent) File() *os.File { return d.levels[len(d.levels)-1].file }

// Fd returns the descriptor of File.
func (d *Descent) Fd() int { return int(d.File().Fd()) }

// Enter goes into a directory. The error is that of openat(2); then the Descent stays where it is.
func (d *Descent) Enter(name string) error {
	fd, err := unix.Openat(d.Fd(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d.levels = append(d.levels, level{file: os.NewFile(uintptr(fd), name)})
	if len(d.levels)-d.closed <= maxOpen {
		return nil
	}
	if err := d.levels[d.closed].close(); err != nil {
		return errors.Join(err, d.Leave())
	}
	d.closed++
	return nil
}

// close closes the directory and notes which one it is.
func (l *level) close() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(l.file.Fd()), &st); err != nil {
		return err
	}
	l.dev, l.ino = st.Dev, st.Ino
	err := l.file.Close()
	l.file = nil
	return err
}

// Leave goes back to the directory that Enter was called in. It fails with ErrMoved if that is no longer the parent.
func (d *Descent) Leave() error {
	last := len(d.levels) - 1
	file := d.levels[last].file
	defer file.Close()
	d.levels = d.levels[:last]
	up := &d.levels[last-1]
	if up.file != nil {
		return nil
	}
	fd, err := unix.Openat(int(file.Fd()), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	up.file = os.NewFile(uintptr(fd), "..")
	d.closed = last - 1
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != up.dev || st.Ino != up.ino {
		return ErrMoved
	}
	return nil
}

// Close closes the directories.
func (d *Descent) Close() {
	for _, l := range d.levels[d.closed:] {
		l.file.Close()
	}
	d.levels = d.levels[:d.closed]
}
