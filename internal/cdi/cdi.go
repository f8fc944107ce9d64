// Package cdi reads the specifications of the Container Device Interface, which say what a process needs to use a device:
// nodes in /dev, mounts, environment variables. See https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md.
package cdi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DefaultDirs are where specifications are; what a later directory says goes before what an earlier one does.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi"}

// Annotations that BuildKit gives a meaning.
const (
	classAnnotation     = "org.mobyproject.buildkit.device.class"
	autoAllowAnnotation = "org.mobyproject.buildkit.device.autoallow"
)

// maxSpec bounds a specification in bytes.
const maxSpec = 4 << 20

// Device is a device that can be asked for.
type Device struct {
	// Name is the whole name, "vendor.com/class=name".
	Name string
	// Edits are those of the specification and those of the device.
	Edits []Edits
	// AutoAllow says that nobody has to allow its use.
	AutoAllow bool

	kind, class string
	dir         int
	file        string
	clash       string // the other file of the same directory that has a device of this name
}

// Edits are what a device changes about a process.
type Edits struct {
	Env         []string    `yaml:"env"`
	DeviceNodes []Node      `yaml:"deviceNodes"`
	Mounts      []Mount     `yaml:"mounts"`
	Groups      []uint32    `yaml:"additionalGids"`
	Hooks       []yaml.Node `yaml:"hooks"`
	NetDevices  []yaml.Node `yaml:"netDevices"`
	IntelRdt    *yaml.Node  `yaml:"intelRdt"`
}

// Node is a device node.
type Node struct {
	// Path is where it is to be, HostPath where it is; "" for Path.
	Path     string `yaml:"path"`
	HostPath string `yaml:"hostPath"`
	// Type is "c", "u" or "b", or "" for what HostPath is; Major and Minor hold where it is not "".
	Type  string `yaml:"type"`
	Major int64  `yaml:"major"`
	Minor int64  `yaml:"minor"`
	// FileMode, UID and GID are those of HostPath where they are nil.
	FileMode *uint32 `yaml:"fileMode"`
	UID      *uint32 `yaml:"uid"`
	GID      *uint32 `yaml:"gid"`
}

// Mount is a file or directory of the host.
type Mount struct {
	HostPath      string   `yaml:"hostPath"`
	ContainerPath string   `yaml:"containerPath"`
	Type          string   `yaml:"type"`
	Options       []string `yaml:"options"`
}

type spec struct {
	Version     string         `yaml:"cdiVersion"`
	Kind        string         `yaml:"kind"`
	Annotations map[string]any `yaml:"annotations"`
	Edits       Edits          `yaml:"containerEdits"`
	Devices     []struct {
		Name        string         `yaml:"name"`
		Annotations map[string]any `yaml:"annotations"`
		Edits       Edits          `yaml:"containerEdits"`
	} `yaml:"devices"`
}

// Registry holds the devices of a machine.
type Registry struct {
	devices []*Device // by name
	// problems are why files were not read.
	problems []string
}

// Load reads the specifications in dirs. A file that cannot be read has no devices; errors about missing devices say so.
func Load(dirs ...string) *Registry {
	r := &Registry{}
	byName := map[string]*Device{}
	for i, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.problems = append(r.problems, err.Error())
		}
		for _, e := range entries {
			file := filepath.Join(dir, e.Name())
			if !slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(file)) {
				continue
			}
			if err := read(file, i, byName); err != nil {
				r.problems = append(r.problems, fmt.Sprintf("%s: %v", file, err))
			}
		}
	}
	for _, d := range byName {
		r.devices = append(r.devices, d)
	}
	slices.SortFunc(r.devices, func(a, b *Device) int { return strings.Compare(a.Name, b.Name) })
	return r
}

// parse reads a specification. As by the reference implementation a JSON file is taken for YAML, in which a number or a boolean can stand
// where a string is wanted.
func parse(text []byte, isJSON bool) (s spec, err error) {
	if isJSON {
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			return s, err
		}
		if text, err = yaml.Marshal(v); err != nil {
			return s, err
		}
	}
	return s, yaml.Unmarshal(text, &s)
}

func read(file string, dir int, byName map[string]*Device) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSpec {
		return errors.New("it is not a regular file, or is too large")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	s, err := parse(text, filepath.Ext(file) == ".json")
	if err != nil {
		return err
	}
	if vendor, class, ok := strings.Cut(s.Kind, "/"); !ok || vendor == "" || class == "" || strings.Contains(class, "=") {
		return fmt.Errorf("the kind %q is not vendor/class", s.Kind)
	}
	for _, device := range s.Devices {
		if device.Name == "" {
			return errors.New("a device has no name")
		}
		annotation := func(name string) string {
			v, ok := device.Annotations[name]
			if !ok {
				v = s.Annotations[name]
			}
			switch v := v.(type) {
			case string, bool, int, float64:
				return fmt.Sprint(v)
			}
			return ""
		}
		d := &Device{
			Name: s.Kind + "=" + device.Name, Edits: []Edits{s.Edits, device.Edits}, kind: s.Kind,
			class: annotation(classAnnotation), dir: dir, file: file,
		}
		d.AutoAllow, _ = strconv.ParseBool(annotation(autoAllowAnnotation))
		if other := byName[d.Name]; other != nil && other.dir == dir {
			d.clash = other.file
		}
		byName[d.Name] = d
	}
	return nil
}

// Find returns the devices that a name means: "vendor.com/class=name" one, "vendor.com/class=*" all of the class,
// "vendor.com/class" the first of the class, and any other name those that are annotated with it as BuildKit's class. There
// may be none.
func (r *Registry) Find(name string) ([]*Device, error) {
	kind, which, _ := strings.Cut(name, "=")
	var found []*Device
	for _, d := range r.devices {
		if d.kind == kind && (which == "*" || d.Name == name || which == "" && len(found) == 0) {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		for _, d := range r.devices {
			if d.class != "" && d.class == name {
				found = append(found, d)
			}
		}
	}
	for _, d := range found {
		if d.clash != "" {
			return nil, fmt.Errorf("the device %s is specified by %s and by %s", d.Name, d.clash, d.file)
		}
	}
	return found, nil
}

// All returns the devices, sorted by name.
func (r *Registry) All() []*Device { return r.devices }

// Problems says why specifications were not read, "" if all were.
func (r *Registry) Problems() string { return strings.Join(r.problems, "; ") }

// Allowed reports whether entitlements, in the form of --allow, allow a device that was asked for by a name: "device" allows all
// devices, "device=NAME" those that NAME means, or what is asked for by exactly that name.
func (d *Device) Allowed(asked string, entitlements []string) bool {
	return d.AutoAllow || NameAllowed(asked, entitlements) ||
		NameAllowed(d.Name, entitlements) || NameAllowed(d.kind, entitlements) || NameAllowed(d.kind+"=*", entitlements)
}

// NameAllowed reports whether entitlements allow a name, whether or not a device has it.
func NameAllowed(name string, entitlements []string) bool {
	return slices.Contains(entitlements, "device") || slices.Contains(entitlements, "device="+name)
}

// Unsupported names what of a device kiln cannot do; "" if it can do everything.
func (d *Device) Unsupported() string {
	for _, e := range d.Edits {
		switch {
		case len(e.Hooks) > 0:
			return "hooks"
		case len(e.NetDevices) > 0:
			return "netDevices"
		case e.IntelRdt != nil && e.IntelRdt.Tag != "!!null":
			return "intelRdt"
		}
	}
	return ""
}
