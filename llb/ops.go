package llb

import "slices"

// Scratch is the empty root file system. No inputs.
type Scratch struct{}

// Kind implements Op.
func (Scratch) Kind() string { return "scratch" }

// Image is the root file system of an image. No inputs.
type Image struct {
	// Ref is what the Dockerfile asked for, in full: "docker.io/library/debian:bookworm".
	Ref string
	// Digest is the digest of one platform's manifest, "sha256:…", of an image that was resolved before it became a vertex. An image with
	// a Platform is resolved when it is first planned; its Digest is then "", or that of the manifest or index which Ref has to stand for.
	Digest string
	// Layout is the directory of the OCI layout that holds the image; "" for one from a registry or the local store.
	Layout string
	// Platform is what the image is resolved for, as in Platform.String; "" for one that has been resolved.
	Platform string `json:",omitempty"`
	// Store is the name of the OCI layout of a client that holds the image, and Session is the client's; "" for none, and for the client
	// of the build.
	Store   string `json:",omitempty"`
	Session string `json:",omitempty"`
	// Pull says where the image is looked for.
	Pull Pull `json:",omitempty"`
	// Checksum is the digest that what Ref stands for must have, "sha256:…"; "" for any.
	Checksum string `json:",omitempty"`
	// Layers is how many layers are taken, the lowest ones; 0 for all. An image with fewer is taken as it is.
	Layers int `json:",omitempty"`
}

// Pull says where an Image that has not been resolved is looked for.
type Pull string

// The values of Image.Pull; "" is for what the build does.
const (
	PullAlways Pull = "always" // its registry is asked
	PullLocal  Pull = "local"  // the local store comes first
)

// Kind implements Op.
func (Image) Kind() string { return "image" }

// Local is a directory of the client: the build context or a named context. No inputs. It can only be the source of a Copy; it
// never is a root file system.
type Local struct {
	// Name is "context" for the build context, else the named context's name.
	Name string
	// Session is the id of the client that has the directory; "" for the client of the build.
	Session string `json:",omitempty"`
	// Include are patterns of what is taken of the directory, none for all of it, and Exclude of what is not; both in the syntax of
	// .dockerignore.
	Include []string `json:",omitempty"`
	Exclude []string `json:",omitempty"`
	// Follow are paths, possibly with wildcards, that are taken with all that symbolic links in them lead to.
	Follow []string `json:",omitempty"`
	// Shared is a name under which the client may have sent the directory before; it is a hint.
	Shared string `json:",omitempty"`
	// Unlike says that files are compared with those that were sent before by nothing: all are sent.
	Unlike bool `json:",omitempty"`
	// Metadata has only the names and attributes of files sent, without their bytes, but for what the patterns Whole match.
	Metadata bool     `json:",omitempty"`
	Whole    []string `json:",omitempty"`
}

// Kind implements Op.
func (Local) Kind() string { return "local" }

// Filtered reports whether it is not the whole directory that the client of the build has under a name.
func (l Local) Filtered() bool {
	return l.Session != "" || l.Metadata || len(l.Include)+len(l.Exclude)+len(l.Follow) > 0
}

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
	// Output is the number of the vertex's output that Input becomes by what the process writes to a bind mount: one layer over it. The
	// numbers of an Exec's mounts count from 1 without a gap. With 0 the writes are thrown away.
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

// ExecLimits bound the resources of a process beside those of the build; 0 and "" are no limit.
type ExecLimits struct {
	// Memory and MemorySwap, of memory and swap together, are in bytes; a negative MemorySwap is without limit.
	Memory, MemorySwap int64
	// CPUShares is the weight beside other processes, as in docker's --cpu-shares.
	CPUShares uint64
	// CPUQuota is processor time in each CPUPeriod; both are in microseconds.
	CPUQuota  int64
	CPUPeriod uint64
	// CPUs and MemoryNodes are lists as "0-3,7".
	CPUs, MemoryNodes string
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
	// ReadOnly shows the root file system to the process read-only. Mounts can be written to all the same.
	ReadOnly bool `json:",omitempty"`
	// ExitStatus are those of a process that succeeds; none for 0 alone.
	ExitStatus []int `json:",omitempty"`
	// Limits bound what the process may use. They are neither part of the digest nor of the key.
	Limits ExecLimits `json:"-"`
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

// Passthrough makes nothing: its outputs are those of its inputs whose numbers Outputs has. They are there when all inputs are.
type Passthrough struct {
	Outputs []int
}

// Kind implements Op.
func (Passthrough) Kind() string { return "passthrough" }

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
	case Passthrough:
		return op.Outputs
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
