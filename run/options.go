package run

import (
	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/llb"
)

// Options say what to run. Paths of the host are absolute.
type Options struct {
	// Image is the image's name, full or short, its ID, or the first digits of that.
	Image string
	// Platform chooses from images for several, as "os/arch[/variant]"; "" is the host's.
	Platform string
	Pull     Pull
	Program  Program
	// Volumes are mounted besides those of the image's config, of which they take the place at the same target.
	Volumes []Volume
	// ReadOnly mounts the root file system read-only. Volumes and /dev/shm can be written to all the same.
	ReadOnly bool
	Network  llb.Network
	// Hostname is the host name, DefaultHostname if "".
	Hostname string
	// Ports are published, which takes NetworkDefault. PublishAll publishes those that the image exposes as well, at free ports of the
	// loopback interface.
	Ports      []network.Port
	PublishAll bool
	llb.RunOptions
	confine.Request
	// Terminal says that the program will have a terminal.
	Terminal bool
	// Warn shows people what they should know, and may be nil.
	Warn func(text string)
}

// Pull says when an image is fetched from its registry.
type Pull string

// The values of Pull.
const (
	PullMissing Pull = "missing"
	PullAlways  Pull = "always"
	PullNever   Pull = "never"
)

// Program is what takes the place of what the image's config says of its program.
type Program struct {
	// Entrypoint takes the place of the image's, with which its CMD goes too; nil leaves both.
	Entrypoint []string
	// Args take the place of CMD, if there are any.
	Args []string
	// Env are variables, "NAME=value". Of several of one name the last counts.
	Env []string
	// Dir is the working directory, and User the user, as USER of a Dockerfile has it; "" for those of the image.
	Dir, User string
}

// Volume is something that is mounted in the container.
type Volume struct {
	// Kind says what.
	Kind VolumeKind
	// Source is a file or directory of the host, for a Bind.
	Source string
	// Target is where it is mounted, an absolute path in the container. Links of the image are followed inside its root file system.
	Target string
	// ReadOnly is for a Bind.
	ReadOnly bool
	// Size limits a Tmpfs in bytes; 0 is the kernel's default.
	Size int64
}

// VolumeKind is a kind of Volume.
type VolumeKind int

const (
	// Anonymous is a directory of the root file system, which begins with what the image has there and goes with the container.
	Anonymous VolumeKind = iota
	// Bind is a file or directory of the host.
	Bind
	// Tmpfs is an empty file system in memory.
	Tmpfs
)

// DefaultHostname is the host name of a container for which Options gives none.
const DefaultHostname = "kiln"
