package llb

// File changes its root file system, input 0, by Actions, one after the other, and makes one layer of that, possibly empty: COPY,
// ADD and WORKDIR. Each action sees what those before it did.
type File struct {
	Actions []Action
}

// Kind implements Op.
func (File) Kind() string { return "file" }

// Action is one change of a File: exactly one of its fields is set. Paths are absolute. Symbolic links in the directories of a path
// are followed inside the root file system; whether the last component is followed, each action says.
type Action struct {
	Copy    *Copy    `json:",omitempty"`
	Mkfile  *Mkfile  `json:",omitempty"`
	Mkdir   *Mkdir   `json:",omitempty"`
	Remove  *Remove  `json:",omitempty"`
	Symlink *Symlink `json:",omitempty"`
}

// Chown returns the owner that the action asks for; "" for none.
func (a Action) Chown() string { return a.attributes().Chown }

// Epoch returns the time of what the action makes; nil for the clock's.
func (a Action) Epoch() *int64 { return a.attributes().Epoch }

func (a Action) attributes() Attributes {
	switch {
	case a.Copy != nil:
		return a.Copy.Attributes
	case a.Mkfile != nil:
		return a.Mkfile.Attributes
	case a.Mkdir != nil:
		return a.Mkdir.Attributes
	case a.Symlink != nil:
		return a.Symlink.Attributes
	}
	return Attributes{}
}

// Attributes are those of what an action makes.
type Attributes struct {
	// Chown is "user[:group]" by names of the root file system's files or by numbers; "" leaves the owner as it is, root for what is new.
	Chown string
	// Chmod is octal or symbolic as in chmod(1); "" leaves the mode as it is.
	Chmod string
	// Epoch, where not nil, is the time in Unix seconds of what the action makes and does not copy (SOURCE_DATE_EPOCH).
	Epoch *int64
}

// CopySource is one source of a Copy: Path (a file, a directory, or with wildcards) in the vertex's input number Input, at least 1.
type CopySource struct {
	Input int
	Path  string
	// AllowMissing makes a path without wildcards that does not exist select nothing.
	AllowMissing bool
	// Unpack puts the content of a file that is an archive in place of it: ADD of a local file.
	Unpack bool
}

// Copy copies files of other inputs, with their owners, but for those of a Local, which become root's.
type Copy struct {
	Sources []CopySource
	// Dest is followed where it is a symbolic link; a trailing slash says that it is a directory.
	Dest string
	Attributes
	// Exclude are patterns in the syntax of .dockerignore, relative to each source directory.
	Exclude []string
	// Parents keeps the sources' parent directories, from a "/./" on.
	Parents bool
	// Link ignores what is at the destination: input 0 is Scratch and symbolic links of the final root are not followed.
	Link bool
}

// Mkfile makes a regular file, mode 0644, in the place of what is there: a heredoc of COPY or ADD.
type Mkfile struct {
	// Path and Link are as Copy's Dest and Link: where Path is a directory, the file is made in it, as Name.
	Path string
	Name string
	Link bool
	// Content are the file's bytes.
	Content []byte
	Attributes
}

// Mkdir makes a directory, mode 0755, and its missing parents: WORKDIR. Path is followed where it is a symbolic link. A directory
// that exists is left as it is.
type Mkdir struct {
	Path string
	Attributes
}

// Remove removes what is at Path, which is not followed, and all that is in it.
type Remove struct {
	Path string
	// AllowMissing makes it no error that nothing is there, and AllowWildcard lets Path have wildcards, which may select nothing.
	AllowMissing  bool
	AllowWildcard bool
}

// Symlink makes a symbolic link to Target at Path, where nothing may be. Missing directories of Path are an error.
type Symlink struct {
	Path   string
	Target string
	Attributes
}

// Selections returns what the vertices below some outputs select of each Local, by its name: paths and wildcards.
func Selections(roots []Output) map[string][]string {
	selected := map[string][]string{}
	for v := range Vertices(roots) {
		file, ok := v.op.(File)
		if !ok {
			continue
		}
		for _, a := range file.Actions {
			if a.Copy == nil {
				continue
			}
			for _, s := range a.Copy.Sources {
				if local, ok := v.inputs[s.Input].Vertex.op.(Local); ok {
					selected[local.Name] = append(selected[local.Name], s.Path)
				}
			}
		}
	}
	return selected
}
