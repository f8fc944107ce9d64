package mounts

import (
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/llb"
)

// TestRead: targets are absolute, names that are not given come from elsewhere in the flag, and mounts are in the order of mounting.
func TestRead(t *testing.T) {
	for flags, want := range map[string]string{
		"type=cache,target=c":                               "cache /w/c id=ns/c",
		"type=cache,target=/c,id=x type=tmpfs,target=/a":    "tmpfs /a id=|cache /c id=ns/x",
		"type=secret,id=s":                                  "secret /run/secrets/s id=s",
		"type=secret,target=/x/y":                           "secret /x/y id=y",
		"type=secret,id=s,env=E":                            "secret  id=s",
		"type=ssh type=ssh,id=b":                            "ssh /run/buildkit/ssh_agent.0 id=default|ssh /run/buildkit/ssh_agent.1 id=b",
		"type=secret,id=s,target=/a/b type=cache,target=/a": "cache /a id=ns//a|secret /a/b id=s",
		"type=tmpfs,target=/":                               "error: invalid mount target",
		"type=tmpfs,target=/proc/x":                         "error: nothing else can be mounted",
		"type=cache,target=../proc":                         "error: nothing else can be mounted",
	} {
		text := "FROM scratch\nRUN"
		for flag := range strings.FieldsSeq(flags) {
			text += " --mount=" + flag
		}
		parsed, err := moby.Parse(strings.NewReader(text + " true\n"))
		if err != nil {
			t.Fatal(err)
		}
		stages, _, err := instructions.Parse(parsed.AST, linter.New(&linter.Config{}))
		if err != nil {
			t.Fatal(err)
		}
		run := stages[0].Commands[0].(*instructions.RunCommand)
		if err := run.Expand(func(word string) (string, error) { return word, nil }); err != nil {
			t.Fatal(err)
		}
		r := &Reader{Cwd: "/w", CacheNamespace: "ns"}
		var all []llb.Mount
		got := ""
		for _, m := range instructions.GetMounts(run) {
			out, err := r.Read(m)
			if err != nil {
				got = "error: " + err.Error()
			}
			if id := ID(m); id != out.ID {
				t.Errorf("%s: the id is %q, and that of the mount %q", flags, id, out.ID)
			}
			all = append(all, out)
		}
		Order(all)
		for i, m := range all {
			if strings.HasPrefix(got, "error") {
				break
			}
			if i > 0 {
				got += "|"
			}
			got += string(m.Type) + " " + m.Target + " id=" + m.ID + m.CacheID
		}
		if got != want && !(strings.HasPrefix(want, "error: ") && strings.HasPrefix(got, "error: ") && strings.Contains(got, want[7:])) {
			t.Errorf("%s: %s, want %s", flags, got, want)
		}
	}
}
