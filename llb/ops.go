package llb

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

// Local is a directory of the client: the build context or a named context. No inputs. It can only be read from, as a
// source of Copy or Exec; it never is a root file system.
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
	// ReadOnly is false for a bind mount with rw, whose writes are thrown away, and for a cache mount without ro.
	ReadOnly bool
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

// ExtraHost is a line of /etc/hosts: RUN's --add-host. IP may be "host-gateway".
type ExtraHost struct {
	Host string
	IP   string
}

// Ulimit is a resource limit by its name without the RLIMIT_ prefix, in lower case: "nofile".
type Ulimit struct {
	Name string
	Soft uint64
	Hard uint64
}

// Exec runs a process in its root file system, input 0; other inputs are those that Mounts name. Its output is the root
// file system afterwards: one new layer, possibly empty.
type Exec struct {
	Args []string
	// Env is the process's whole environment, "NAME=value" in order.
	Env []string
	// Cwd is absolute; it is made, mode 0755 and owned by root, where it is missing.
	Cwd string
	// User is USER as written: "user[:group]", names or numbers; "" is root.
	User       string
	Network    Network
	Security   Security
	Mounts     []Mount
	ExtraHosts []ExtraHost
	Ulimits    []Ulimit
	// Hostname is "" for the default, buildkitsandbox.
	Hostname string
	// ShmSize is the size of /dev/shm in bytes; 0 for the default, 64 MiB.
	ShmSize      int64
	CgroupParent string
	// Devices are those of RUN --device.
	Devices []Device
	// Proxy holds the predefined proxy variables: they reach the process and nothing else, neither digest nor key.
	Proxy []string `json:"-"`
}

// Kind implements Op.
func (Exec) Kind() string { return "exec" }

// InlineFile is a heredoc of COPY or ADD.
type InlineFile struct {
	Name    string
	Content []byte
}

// CopySource is one source of a Copy: Path (a file, a directory, or with wildcards) in the vertex's input number Input,
// or Inline.
type CopySource struct {
	Input int
	Path  string
	// Inline is set for a heredoc; Input and Path are then zero.
	Inline *InlineFile
	// AllowMissing makes a path without wildcards that does not exist select nothing.
	AllowMissing bool
	// Unpack puts the content of a file that is an archive in place of it: ADD of a local file.
	Unpack bool
}

// Copy puts files into its root file system, input 0, as one new layer: COPY and ADD.
// Sources' inputs start at 1.
type Copy struct {
	Sources []CopySource
	// Dest is absolute; a trailing slash says that it is a directory.
	Dest string
	// Chown is "user[:group]" by names of the destination's files or numbers; "" keeps the owners of an image's or stage's
	// files and gives root those of a local context.
	Chown string
	// Chmod is octal or symbolic as in chmod(1); "" keeps the modes.
	Chmod string
	// Exclude are patterns in the syntax of .dockerignore, relative to each source directory.
	Exclude []string
	// Parents keeps the sources' parent directories, from a "/./" on.
	Parents bool
	// Link ignores what is at the destination: input 0 is Scratch and symbolic links of the final root are not followed.
	Link bool
	// Epoch, where not nil, is the time in Unix seconds of directories that the copy creates (SOURCE_DATE_EPOCH).
	Epoch *int64
}

// Kind implements Op.
func (Copy) Kind() string { return "copy" }

// Mkdir makes a directory and its missing parents in its root file system, input 0, as one new layer, possibly empty:
// WORKDIR. Path is absolute; a directory that exists is left as it is.
type Mkdir struct {
	Path string
	// User owns what is made: "user[:group]" as USER has it; "" is root.
	User string
	// Epoch, where not nil, is the time in Unix seconds of what is made (SOURCE_DATE_EPOCH).
	Epoch *int64
}

// Kind implements Op.
func (Mkdir) Kind() string { return "mkdir" }

// Merge stacks the layers of its further inputs, each made over Scratch, onto its root file system, input 0: COPY --link.
type Merge struct{}

// Kind implements Op.
func (Merge) Kind() string { return "merge" }
