package cdi

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLoad reads specifications as the reference implementation does, in which numbers and booleans may stand for strings.
func TestLoad(t *testing.T) {
	for name, c := range map[string]struct {
		file, text string
		device     string
		allowed    bool
	}{
		"yaml":                {"a.yaml", "kind: v.com/c\ndevices:\n- name: x\n  containerEdits: {env: [A=1]}\n", "v.com/c=x", false},
		"a number":            {"a.yml", "kind: v.com/c\ndevices:\n- name: 0\n  containerEdits: {env: [A=1]}\n", "v.com/c=0", false},
		"allowed in quotes":   {"a.yaml", "kind: v.com/c\nannotations: {org.mobyproject.buildkit.device.autoallow: 'true'}\ndevices:\n- name: x\n  containerEdits: {env: [A=1]}\n", "v.com/c=x", true},
		"allowed":             {"a.yaml", "kind: v.com/c\nannotations: {org.mobyproject.buildkit.device.autoallow: true}\ndevices:\n- name: x\n  containerEdits: {env: [A=1]}\n", "v.com/c=x", true},
		"its own annotation":  {"a.yaml", "kind: v.com/c\nannotations: {org.mobyproject.buildkit.device.autoallow: true}\ndevices:\n- name: x\n  annotations: {org.mobyproject.buildkit.device.autoallow: false}\n  containerEdits: {env: [A=1]}\n", "v.com/c=x", false},
		"json":                {"a.json", "{\"kind\": \"v.com/c\", \"annotations\": {\"other\": [1], \"org.mobyproject.buildkit.device.autoallow\": true},\n\t\"devices\": [{\"name\": \"x\", \"containerEdits\": {\"env\": [\"A=1\"], \"intelRdt\": null}}]}", "v.com/c=x", true},
		"an object, not text": {"a.yaml", "kind: v.com/c\nannotations: {a: {b: c}}\ndevices:\n- name: x\n  containerEdits: {env: [A=1]}\n", "v.com/c=x", false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		r := Load(dir)
		found, err := r.Find(c.device)
		if err != nil || len(found) != 1 || r.Problems() != "" {
			t.Errorf("%s: %+v, %v, %s", name, found, err, r.Problems())
			continue
		}
		d := found[0]
		if got := d.Allowed(c.device, nil); got != c.allowed || d.Unsupported() != "" || len(d.Edits) != 2 || len(d.Edits[1].Env) != 1 || d.Edits[1].Env[0] != "A=1" {
			t.Errorf("%s: allowed: %v, %+v", name, got, d)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("kind: v.com/c\ndevices:\n- name: x\n  containerEdits:\n    intelRdt: {closID: a}\n    deviceNodes: [{path: /dev/x, major: 10, minor: 229, fileMode: 0o600, permissions: rw}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	found, err := Load(dir).Find("v.com/c=x")
	if err != nil || len(found) != 1 || found[0].Unsupported() != "intelRdt" || found[0].Edits[1].DeviceNodes[0].Major != 10 || *found[0].Edits[1].DeviceNodes[0].FileMode != 0o600 {
		t.Errorf("%+v, %v", found, err)
	}
}
