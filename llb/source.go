package llb

// HTTP is a file from an http(s) address: a root file system with that one file, mode 0600, owned by root, with the time of
// Last-Modified or else that of Unix 0. Input 0 is Scratch.
type HTTP struct {
	// URL is the address without credentials.
	URL string
	// User is "user[:password]" of the address; "" for none. It reaches neither digest nor key.
	User string `json:"-"`
	// Filename is the name of the file in the root; with ServerNames that is the one that the server gives it, if it does.
	Filename    string
	ServerNames bool `json:",omitempty"`
	// Checksum is what the file has to be, "sha256:…", "sha384:…" or "sha512:…"; "" for whatever comes.
	Checksum string
	// Secret is the id of a secret that is sent as the header Authorization; "" for those that are usual.
	Secret string `json:",omitempty"`
	// Header is sent besides.
	Header []Header `json:",omitempty"`
}

// Header is a line of the header of a request.
type Header struct {
	Name  string
	Value string
}

// Kind implements Op.
func (HTTP) Kind() string { return "http" }

// Git is the tree of a commit: a root file system whose files are 0644 or 0755 and directories 0755, owned by root, with
// the time of the commit. Input 0 is Scratch.
type Git struct {
	// Remote is the repository's address without credentials, as git takes it.
	Remote string
	// User is "user[:password]" of the address; "" for none. It reaches neither digest nor key.
	User string `json:"-"`
	// Ref is a branch, a tag, any other ref or a commit's whole hash; "" is the default branch.
	Ref string
	// Subdir is the directory of the repository that becomes the root; "" for its top.
	Subdir string
	// Checksum is a commit's hash, or the beginning of one, that Ref has to be; "" for none.
	Checksum string
	// FetchByCommit takes the commit Checksum whatever Ref is now. FoundBy and Object are then the full name of the ref that it was found
	// by, and the hash of what that named, which is an annotated tag or the commit; both are "" if that is not known.
	FetchByCommit bool
	FoundBy       string `json:",omitempty"`
	Object        string `json:",omitempty"`
	// KeepGitDir keeps .git, without submodules' own; not where there is a Subdir.
	KeepGitDir bool
	// SkipSubmodules leaves the directories of submodules empty.
	SkipSubmodules bool
	// Bundled takes the commit Checksum from the git bundle that is the file BundleFile of input 1. Remote then only names the repository, and
	// is where submodules are relative to.
	Bundled bool `json:",omitempty"`
	// AsBundle makes a git bundle of the commit, with all that it comes from, in place of its tree: the file BundleFile.
	AsBundle bool `json:",omitempty"`
	// Context says that the user named the repository, and not a Dockerfile: then the user's ssh agent and keys may be used.
	Context bool
	// HeaderSecret and TokenSecret are the ids of secrets with a header Authorization, and with a token for one; "" for those that are
	// usual.
	HeaderSecret string `json:",omitempty"`
	TokenSecret  string `json:",omitempty"`
	// Agent is the id of the ssh agent that is used; "" for "default".
	Agent string `json:",omitempty"`
	// KnownHosts has the keys of ssh servers, in the form of ssh's file known_hosts; "" for those that the machine knows.
	KnownHosts string `json:",omitempty"`
	// Advice says in the log what git advises where a commit is checked out. It has no part in digests and keys.
	Advice bool `json:"-"`
}

// Kind implements Op.
func (Git) Kind() string { return "git" }

// Blob is a blob of a repository of images, or of an OCI layout of a client: a root file system with that one file, mode 0600, owned by
// root, with the time of Unix 0. Input 0 is Scratch.
type Blob struct {
	// Ref is the name of the repository, without tag and digest: "docker.io/library/debian".
	Ref string
	// Digest is that of the blob, "sha256:…".
	Digest string
	// Store is the name of the OCI layout of a client that has the blob, and Session is the client's; "" for a registry, and for the client
	// of the build.
	Store   string `json:",omitempty"`
	Session string `json:",omitempty"`
	// Filename is the name of the file in the root.
	Filename string
	// BundleOf is the git repository, as a material is called, that the blob is a bundle of; "" for none.
	BundleOf string `json:",omitempty"`
}

// Kind implements Op.
func (Blob) Kind() string { return "blob" }

// BundleFile is the name of the file that is a git bundle: what a Git with AsBundle makes, and what one with Bundled reads.
const BundleFile = "bundle"
