package values

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tonistiigi/go-csvvalue"
)

// Entry is an item of a list such as the outputs: its values by key.
type Entry map[string]string

// Fields returns the comma separated values of an item, of which each is KEY=VALUE.
func Fields(s string) (Entry, error) {
	values, err := csvvalue.Fields(s, nil)
	if err != nil {
		return nil, fmt.Errorf("%q is not a list of comma separated values: %w", s, err)
	}
	e := Entry{}
	for _, field := range values {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return nil, fmt.Errorf("%q has the field %q, which is not KEY=VALUE", s, field)
		}
		e[strings.ToLower(strings.TrimSpace(key))] = value
	}
	return e, nil
}

// CacheEntries reads a cache: its type and values, or the names of images.
func CacheEntries(s string) ([]Entry, error) {
	if values, err := csvvalue.Fields(s, nil); err == nil {
		var refs []Entry
		for _, field := range values {
			if !strings.Contains(field, "=") {
				refs = append(refs, Entry{"type": "registry", "ref": field})
			}
		}
		if len(refs) == len(values) {
			return refs, nil
		}
	}
	e, err := Fields(s)
	if err == nil && e["type"] == "" {
		err = fmt.Errorf("%q has no type: write type=registry,ref=IMAGE, or the image alone", s)
	}
	return []Entry{e}, err
}

// OutputEntry reads an output: its type and values, a directory, or "-" for a tar archive on standard output.
func OutputEntry(s string) ([]Entry, error) {
	switch values, err := csvvalue.Fields(s, nil); {
	case s == "-":
		return []Entry{{"type": "tar", "dest": "-"}}, nil
	case err == nil && len(values) == 1 && values[0] == s && !strings.HasPrefix(s, "type="):
		return []Entry{{"type": "local", "dest": s}}, nil
	}
	e, err := Fields(s)
	if err == nil && e["type"] == "" {
		err = fmt.Errorf("%q has no type", s)
	}
	if err == nil {
		err = e.Output()
	}
	return []Entry{e}, err
}

// Output says where an archive goes that names no file: to standard output.
func (e Entry) Output() error {
	if e["type"] != "tar" && e["type"] != "oci" || e["dest"] != "" {
		return nil
	}
	if e["type"] == "oci" && e["tar"] == "false" {
		return errors.New("type=oci,tar=false has no dest: name the directory of the layout")
	}
	e["dest"] = "-"
	return nil
}

// AttestEntry reads an attestation.
func AttestEntry(s string) ([]Entry, error) {
	e, err := Fields(s)
	if err == nil && e["type"] == "" {
		err = fmt.Errorf("%q has no type", s)
	}
	return []Entry{e}, err
}

// SecretEntry reads a secret: its id, and the file or variable that has it.
func SecretEntry(s string) ([]Entry, error) {
	e, err := Fields(s)
	if err != nil {
		return nil, err
	}
	return []Entry{e}, e.Secret()
}

// Secret brings the values of a secret into one form.
func (e Entry) Secret() error {
	for key, value := range e {
		switch key {
		case "id", "src", "env":
		case "source":
			e["src"] = value
			delete(e, key)
		case "type":
			if value != "file" && value != "env" && value != "" {
				return fmt.Errorf("the type %q of a secret is neither file nor env", value)
			}
		default:
			return fmt.Errorf("a secret has no %q", key)
		}
	}
	if e["type"] == "env" && e["env"] == "" && e["src"] != "" {
		e["env"] = e["src"]
		delete(e, "src")
	}
	delete(e, "type")
	for _, key := range []string{"src", "env"} {
		if e[key] == "" {
			delete(e, key)
		}
	}
	if e["id"] == "" {
		return errors.New("a secret has no id")
	}
	return nil
}

// SSHEntry reads an agent: ID, or ID=PATH,PATH.
func SSHEntry(s string) ([]Entry, error) {
	id, paths, _ := strings.Cut(s, "=")
	e := Entry{"id": id}
	if paths != "" {
		e["paths"] = paths
	}
	return []Entry{e}, nil
}

// PolicyEntry reads a policy.
func PolicyEntry(s string) ([]Entry, error) {
	e, err := Fields(s)
	return []Entry{e}, err
}

// String returns an entry as a flag has it, with its type or id first.
func (e Entry) String() string {
	var fields []string
	for _, first := range []string{"type", "id"} {
		if value, ok := e[first]; ok {
			fields = append(fields, quoted(first+"="+value))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(e)) {
		if key != "type" && key != "id" {
			fields = append(fields, quoted(key+"="+e[key]))
		}
	}
	return strings.Join(fields, ",")
}

// quoted returns a field of a comma separated list.
func quoted(field string) string {
	if !strings.ContainsAny(field, "\",\r\n") {
		return field
	}
	return `"` + strings.ReplaceAll(field, `"`, `""`) + `"`
}

// Paths returns the paths of an agent.
func (e Entry) Paths() []string {
	if e["paths"] == "" {
		return nil
	}
	return strings.Split(e["paths"], ",")
}
