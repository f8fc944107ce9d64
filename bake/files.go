package bake

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/kilnbuild/kiln/compose"
)

// format is the language of a file.
type format int

const (
	formatHCL format = iota
	formatJSON
	formatCompose
)

// file is one file of a definition.
type file struct {
	name   string // as the user named it
	format format
	data   []byte
}

// bakeFiles are read where no file is named, after the compose files.
var bakeFiles = []string{"docker-bake.json", "docker-bake.hcl", "docker-bake.override.json", "docker-bake.override.hcl"}

// find returns the files of a directory that are read where none is named: all of them that exist, in the order in which they are merged.
func find(dir string) ([]string, error) {
	var found []string
	for _, name := range slices.Concat(compose.DefaultFiles, bakeFiles) {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("there is no bake definition in %s: name one with -f, or make docker-bake.hcl", dir)
	}
	return found, nil
}

func readAll(o *Options) (files []*file, err error) {
	names := o.Files
	if len(names) == 0 {
		if names, err = find(o.Dir); err != nil {
			return nil, err
		}
	}
	if len(names) > maxFiles {
		return nil, fmt.Errorf("there are %d files, more than the %d that are allowed", len(names), maxFiles)
	}
	if n := len(slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name != "-" })); n > 1 {
		return nil, errors.New("standard input (-f -) can be read only once")
	}
	for _, name := range names {
		f, err := read(o, name)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// localPrefix is that of a path which is relative to the working directory even if the definition is a remote one.
const localPrefix = "cwd://"

func read(o *Options, name string) (*file, error) {
	name = strings.TrimPrefix(name, localPrefix)
	in, path := o.Stdin, name
	if name != "-" {
		if strings.Contains(name, "://") {
			return nil, fmt.Errorf("%s: remote definitions are not supported: fetch the file, and name it with -f", name)
		}
		if !filepath.IsAbs(name) {
			path = filepath.Join(o.Dir, name)
		}
		info, err := os.Stat(path)
		if err == nil && info.IsDir() {
			err = errors.New("it is a directory: name a file in it")
		}
		if err != nil {
			return nil, fmt.Errorf("read the bake definition %s: %w", name, plain(err))
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read the bake definition %s: %w", name, plain(err))
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than the %d MiB that are allowed", maxFile>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("read the bake definition %s: %w", name, err)
	}
	return &file{name: name, format: formatOf(name, data), data: data}, nil
}

// plain returns the reason of an error of a path, which the message names already.
func plain(err error) error {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// yamlKey is the beginning of a YAML mapping, which no line of HCL has.
var yamlKey = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^("?)[A-Za-z_][A-Za-z0-9_.-]*"?:(\s|$)`)
})

// formatOf returns the format that the name of a file says, or that its first line has.
func formatOf(name string, data []byte) format {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".hcl":
		return formatHCL
	case ".json":
		return formatJSON
	case ".yaml", ".yml":
		return formatCompose
	}
	for line := range strings.Lines(string(data)) {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
			continue
		case strings.HasPrefix(trimmed, "{"):
			if syntax.HasMember(data, "services") {
				return formatCompose
			}
			return formatJSON
		case trimmed == "---" || yamlKey().MatchString(strings.TrimRight(line, "\r\n")):
			return formatCompose
		}
		break
	}
	return formatHCL
}
