package complete

import (
	"path"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/kilnbuild/kiln/store/peek"
	"github.com/spf13/cobra"
)

// argsOf returns what is offered for the arguments of a command.
func argsOf(cmd *cobra.Command) source {
	parent := ""
	if cmd.HasParent() {
		parent = cmd.Parent().Name()
	}
	if parent == "mounts" {
		return mountCommand(cmd.Name())
	}
	switch cmd.Name() {
	case "build", "b":
		if parent == "compose" {
			return services
		}
		return first(only(dirs))
	case "lock":
		return only(dirs)
	case "images", "ls", "show", "history", "push", "pull":
		return first(imageNames)
	case "inspect", "create":
		return imageNames
	case "tag":
		return upTo(2, imageNames)
	case "diff":
		return upTo(2, others(imageNames))
	case "rmi", "rm", "save":
		return others(imageNames)
	case "cp":
		return copied
	case "run":
		return imageThenFiles
	case "login", "logout":
		return first(registries)
	case "explain":
		return first(builds)
	case "man":
		return first(only(dirs))
	case "completion":
		return first(words("bash", "zsh", "fish"))
	case "help":
		return commandNames
	}
	return only(none)
}

// mountCommand returns what is offered for the arguments of a command for cache mounts.
func mountCommand(name string) source {
	switch name {
	case "rm", "export":
		return others(cacheMounts)
	case "import":
		return first(only(files))
	}
	return only(none)
}

// cacheMounts offers the ids of cache mounts.
func cacheMounts(r *Request) ([]string, cobra.ShellCompDirective) {
	root, err := r.root()
	if err != nil {
		return nil, none
	}
	all, err := cachemount.List(root)
	if err != nil {
		return nil, none
	}
	var out []string
	for _, c := range all {
		out = append(out, c.ID)
	}
	return out, none
}

// upTo offers something for the first n arguments.
func upTo(n int, from source) source {
	return func(r *Request) ([]string, cobra.ShellCompDirective) {
		if len(r.args) >= n {
			return nil, none
		}
		return from(r)
	}
}

// others leaves out what is an argument already.
func others(from source) source {
	return func(r *Request) ([]string, cobra.ShellCompDirective) {
		offers, directive := from(r)
		return without(offers, r.args), directive
	}
}

// without returns the words that are not in used.
func without(words, used []string) []string {
	return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return slices.Contains(used, w) })
}

// imageNames offers the names of the images in the store, as short as the user writes them, and IDs if the word begins like one.
func imageNames(r *Request) ([]string, cobra.ShellCompDirective) {
	root, err := r.root()
	if err != nil {
		return nil, none
	}
	images, err := peek.Images(root)
	if err != nil {
		return nil, none
	}
	var out []string
	for _, img := range images {
		ref, err := imagename.Parse(img.Name)
		if err == nil {
			out = append(out, ref.FamiliarTagged(), ref.String())
		}
		id := string(img.Desc.Digest)
		if strings.HasPrefix(r.word, "sha256:") {
			out = append(out, id)
		} else if short := strings.TrimPrefix(id, "sha256:"); len(r.word) >= 4 || img.Name == "" {
			out = append(out, short[:12])
		}
	}
	// The full name is for those who have begun to write it.
	if fits := func(o string) bool { return strings.HasPrefix(o, "docker.io/") }; !strings.HasPrefix(r.word, "docker.") {
		out = slices.DeleteFunc(out, fits)
	}
	slices.Sort(out)
	return out, none
}

// copied offers IMAGE:PATH, and then what the shell has for files.
func copied(r *Request) ([]string, cobra.ShellCompDirective) {
	if len(r.args) > 0 {
		if len(r.args) > 1 {
			return nil, none
		}
		return nil, files
	}
	i := strings.Index(r.word, ":/")
	if i < 0 {
		names, _ := imageNames(r)
		var out []string
		for _, name := range names {
			out = append(out, name+":/")
		}
		return out, more
	}
	root, err := r.root()
	if err != nil {
		return nil, none
	}
	image, begun := r.word[:i], r.word[i+1:]
	dir := begun[:strings.LastIndexByte(begun, '/')+1]
	names, err := peek.Paths(root, image, path.Clean(dir))
	if err != nil {
		return nil, none
	}
	offers := prefixed(image+":"+dir, names)
	directories := slices.DeleteFunc(slices.Clone(offers), func(o string) bool { return !strings.HasPrefix(o, r.word) })
	if len(directories) == 1 && strings.HasSuffix(directories[0], "/") {
		return offers, more
	}
	return offers, none
}

// imageThenFiles offers images, and then what the shell has for files.
func imageThenFiles(r *Request) ([]string, cobra.ShellCompDirective) {
	if len(r.args) > 0 {
		return nil, files
	}
	return imageNames(r)
}

// registries offers those that kiln.toml or Docker's configuration know.
func registries(r *Request) ([]string, cobra.ShellCompDirective) {
	out, err := auth.Registries()
	if err != nil {
		out = nil
	}
	if r.cmd.Name() != "logout" {
		if cfg, err := config.Load(); err == nil {
			for name := range cfg.Registries {
				if !strings.Contains(name, "*") {
					out = append(out, name)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), none
}

// builds offers the IDs of builds, the last first.
func builds(r *Request) ([]string, cobra.ShellCompDirective) {
	root, err := r.root()
	if err != nil {
		return nil, none
	}
	ids, err := history.IDs(root)
	if err != nil {
		return nil, none
	}
	return ids, sorted
}

// commandNames offers the commands below the command that the arguments name.
func commandNames(r *Request) ([]string, cobra.ShellCompDirective) {
	cmd, rest, err := r.cmd.Root().Find(r.args)
	if err != nil || len(rest) > 0 {
		return nil, none
	}
	var out []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			out = append(out, sub.Name()+"\t"+sub.Short)
		}
	}
	return out, none
}
