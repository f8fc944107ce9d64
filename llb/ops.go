package llb

import "slices"

// Scratch is the empty root file system. No inputs.
type Scratch struct{}

// Kind implements Op.
func (Scratch) Kind() string { return "scratch" }

// Image is the root file system of an image that has been resolved to one manifest. No inputs.
type Image struct {
	// Ref is what the Dockerfile asked for, in full: "docker.io/library/debian:bookworm".
	Ref string
	// Digest is the manifest's digest, "sha256:…": one platform's image manifest, never an index.
	Digest string
	// Layout is the directory of the OCI layout that holds the image; "" for one from a registry or the local store.
	Layout string
}

// Kind implements Op.
func (Image) Kind() string { return "image" }

// Local is a directory of the client: the build context or a named context. No inputs. It can only be the source of a Copy; it
// never is a root file system.
type Local struct {
	// Name is "context" for the build context, else the named context's name.
	Name string
}

// Kind implements Op.
func (Local) Kind() string { return "local" }

// Network is how a step reaches the network.
type Network string

// The networks of RUN --network.
const (
	NetworkDefault Network = "default"
	NetworkHost    Network = "host"
	NetworkNone    Network = "none"
)

// Security is the confinement of a step.
type Security string

// The values of RUN --security.
const (
	SecuritySandbox  Security = "sandbox"
	SecurityInsecure Security = "insecure"
)

// MountType is the kind of a Mount.
type MountType string

// The types of RUN --mount.
const (
	MountBind   MountType = "bind"
	MountCache  MountType = "cache"
	MountTmpfs  MountType = "tmpfs"
	MountSecret MountType = "secret"
	MountSSH    MountType = "ssh"
)

// Sharing says how steps that run at the same time share a cache mount.
type Sharing string

// The values of sharing= of a cache mount.
const (
	SharingShared  Sharing = "shared"
	SharingPrivate Sharing = "private"
	SharingLocked  Sharing = "locked"
)

// Device asks for a device of the machine.
type Device struct {
	// Name is a name of the Container Device Interface: "vendor.com/class=name", "vendor.com/class=*" or "vendor.com/class".
	Name string
	// Required makes it an error that there is no such device.
	Required bool
}

// Mount is one RUN --mount, in the order of the instruction.
type Mount struct {
	Type MountType
	// Target is an absolute, cleaned path in the root file system.
	Target string
	// Input is the index, among the vertex's inputs, of what a bind mount shows or a cache mount starts from; 0 for none.
	Input int
	// Source is the path below Input, or in a cache without one below the cache itself, that is mounted; absolute.
	Source string
	// ReadOnly is false for a bind mount with rw and for a cache mount without ro.
	ReadOnly bool
	// Output is the number of the vertex's output that what a bind mount shows, Source "/", becomes by what the process writes
	// there: one layer over Input. The numbers of an Exec's mounts count from 1 without a gap. With 0 the writes are thrown away.
	Output int
	// CacheID names the cache; it is never part of a cache key.
	CacheID string
	Sharing Sharing
	// Mode, UID and GID are of a cache's first directory, a secret's file, an ssh socket. Mode is permission bits.
	Mode uint32
	UID  int
	GID  int
	// Size limits a tmpfs, in bytes; 0 is the kernel's default.
	Size int64
	// ID names a secret or ssh agent.
	ID string
	// Env is the variable that a secret is put into; then Target may be "".
	Env string
	// Required makes a missing secret or agent an error.
	Required bool
}

// Exec runs a process in its root file system, input 0; other inputs are those that Mounts name. Its output 0 is the root
// file system afterwards: one new layer, possibly empty. Mounts can have further outputs.
type Exec struct {
	Args []string
	// Env is the process's whole environment, "NAME=value" in order.
	Env []string
	// Cwd is absolute; it is made, mode 0755 and owned by root, where it is missing.
	Cwd string
	// User is USER as written: "user[:group]", names or numbers; "" is root.
	User     string
	Network  Network
	Security Security
	Mounts   []Mount
	// Hostname is "" for the default, buildkitsandbox.
	Hostname string
	RunOptions
	// Devices are those of RUN --device.
	Devices []Device
	// Proxy holds the predefined proxy variables: they reach the process and nothing else, neither digest nor key.
	Proxy []string `json:"-"`
	// Shell is the SHELL of the stage, for whoever looks at what the step left. It is not part of digest or key either.
	Shell []string `json:"-"`
}

// Kind implements Op.
func (Exec) Kind() string { return "exec" }

// Merge stacks the layers of its further inputs onto its root file system, input 0, which may be Scratch. A directory of an
// input that hides what lay below it there hides that alone, and nothing of the inputs before.
type Merge struct{}

// Kind implements Op.
func (Merge) Kind() string { return "merge" }

// Diff is what has to be put over input 0 to make it input 1: the layers of input 1 above those of input 0, or else one layer of
// what differs, with whiteouts for what is missing. It can be put over other root file systems by Merge.
type Diff struct{}

// Kind implements Op.
func (Diff) Kind() string { return "diff" }

// NoBase is the base of an output that is made over nothing, and of the outputs of ops that have no inputs.
const NoBase = -1

// Bases returns, for each output of an op, the number of the input whose layers are its lowest ones, or NoBase. An op has at
// least one output.
func Bases(op Op) []int {
	switch op := op.(type) {
	case Exec:
		bases := []int{0}
		for n := 1; ; n++ {
			i := slices.IndexFunc(op.Mounts, func(m Mount) bool { return m.Output == n })
			if i < 0 {
				return bases
			}
			bases = append(bases, op.Mounts[i].Input)
		}
	case Scratch, Image, Local, Diff:
		return []int{NoBase}
	}
	return []int{0}
}

// Base returns the output whose layers are the lowest ones of o; false if there is none.
func (o Output) Base() (Output, bool) {
	i := Bases(o.Vertex.op)[o.Index]
	if i == NoBase {
		return Output{}, false
	}
	return o.Vertex.inputs[i], true
}
