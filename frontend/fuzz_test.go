package frontend

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// lower lowers a Dockerfile and checks what comes out, be it an error.
func lower(t *testing.T, dockerfile string) (*Result, error) {
	t.Helper()
	res, err := Build(context.Background(), []byte(dockerfile), Options{BuildPlatform: amd64, AllStages: true}, fakeImages{})
	if err != nil {
		if e, ok := errors.AsType[*parser.Error](err); !ok || e.Msg == "" || e.Line < 1 || e.Line > strings.Count(dockerfile, "\n")+1 {
			t.Errorf("the error has no place in the Dockerfile: %v\n%s", err, dockerfile)
		}
		return nil, err
	}
	if err := check(res); err != nil {
		t.Errorf("%v\n%s", err, dockerfile)
	}
	return res, nil
}

// FuzzExpand compares the expansion of variables with moby's packages, used plainly: a word stands in ENV, which later
// words see, and in LABEL.
func FuzzExpand(f *testing.F) {
	for _, word := range []string{
		"$A", "${A}", "${A:-x}", "${A:+x}", "${A:?x}", "${UNSET-x}", "${A-x}", "${A#*a}", "${A##*a}", "${A%b*}", "${A%%b*}", "${A/a/b}", "${A//a/b}",
		`'$A'`, `"$A b"`, `\$A`, `"\$A\""`, "$", "${", "${}", "${A", "$1", "$$A", "${A:-${B}}", "a\\\nb", `"a`, "$A$A", "ä${A}", "${A:x}", "${!A}",
	} {
		f.Add("aXbXa", word, false)
		f.Add("", word, true)
	}
	f.Fuzz(func(t *testing.T, value, word string, backtick bool) {
		if strings.ContainsAny(value, "\x00\r\n'\\`<") || strings.ContainsAny(word, "\x00\r<") {
			return // another Dockerfile than this one
		}
		text := "FROM scratch\nENV A='" + value + "'\nENV B=" + word + "\nLABEL l=$B\n"
		if backtick {
			text = "# escape=`\n" + text
		}
		env, labels, want := expansion(t, text)
		if errors.Is(want, errOther) {
			return
		}
		res, err := lower(t, text)
		if (err == nil) != (want == nil) {
			t.Fatalf("%q: %v, and moby's packages %v", text, err, want)
		}
		if err != nil {
			return
		}
		config := res.Images[0].Config
		if !slices.Equal(config.Env[1:], env) || len(config.Labels) != len(labels) || config.Labels["l"] != labels["l"] {
			t.Errorf("%q: %q %q, and should be %q %q", text, config.Env, config.Labels, env, labels)
		}
	})
}

var errOther = errors.New("the Dockerfile has other instructions")

// expansion evaluates ENV and LABEL with nothing but moby's packages.
func expansion(t *testing.T, text string) (env []string, labels map[string]string, err error) {
	res, err := moby.Parse(strings.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	stages, _, err := instructions.Parse(res.AST, linter.New(&linter.Config{}))
	if err != nil {
		return nil, nil, err
	}
	if len(stages) != 1 || stages[0].BaseName != "scratch" {
		return nil, nil, errOther
	}
	labels = map[string]string{}
	lex := shell.NewLex(res.EscapeToken)
	for _, c := range stages[0].Commands {
		// The first variable of an image without a base.
		seen := append([]string{"PATH=" + imageconfig.DefaultPath}, env...)
		expand := func(word string) (string, error) {
			s, _, err := lex.ProcessWord(word, shell.EnvsFromSlice(seen))
			return s, err
		}
		switch c := c.(type) {
		case *instructions.EnvCommand:
			if err := c.Expand(expand); err != nil {
				return nil, nil, err
			}
			for _, kv := range c.Env {
				if kv.Key == "PATH" {
					return nil, nil, errOther
				}
				env = setInPlace(env, kv.Key, kv.Value)
			}
		case *instructions.LabelCommand:
			if err := c.Expand(expand); err != nil {
				return nil, nil, err
			}
			for _, kv := range c.Labels {
				labels[kv.Key] = kv.Value
			}
		default:
			return nil, nil, errOther
		}
	}
	return env, labels, nil
}

// FuzzHeredoc: what stands between a heredoc's lines is the file, byte by byte if its name is quoted.
func FuzzHeredoc(f *testing.F) {
	for _, body := range []string{"", "a\n", "\ta\n\t\tb\n", "$HOME ${X} \\\n", "EOF2\n EOF\n", "# comment\n\n", "<<B\nB\n", "a\r\nb\n", "'\"`\n"} {
		f.Add("EOF", body, true)
		f.Add("E_1", body, false)
	}
	f.Fuzz(func(t *testing.T, name, body string, tabs bool) {
		if name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != "" || strings.ContainsAny(body, "\x00\r") || body != "" && !strings.HasSuffix(body, "\n") {
			return
		}
		want, operator := "", "<<"
		if tabs {
			operator = "<<-"
		}
		for line := range strings.Lines(body) {
			if len(line) > 60000 {
				return
			}
			if tabs {
				line = strings.TrimLeft(line, "\t")
			}
			if strings.TrimSuffix(line, "\n") == name {
				return
			}
			want += line
		}
		text := "FROM scratch\nCOPY " + operator + "'" + name + "' /file\n" + body
		for _, end := range []string{name + "\n", name} {
			res, err := lower(t, text+end)
			if err != nil {
				t.Fatalf("%q: %v", text+end, err)
			}
			op, ok := res.Images[0].Root.Vertex.Op().(llb.File)
			if !ok || len(op.Actions) != 1 || op.Actions[0].Mkfile == nil {
				t.Fatalf("%q is no file: %+v", text+end, res.Images[0].Root.Vertex.Op())
			}
			if got := op.Actions[0].Mkfile.Content; !bytes.Equal(got, []byte(want)) {
				t.Errorf("%q: the file holds %q, and should %q", text+end, got, want)
			}
		}
		// A heredoc that does not end is an error, or it would hold what was meant to be instructions.
		if _, err := lower(t, text); err == nil {
			t.Errorf("%q has no end and is taken", text)
		}
	})
}

// FuzzFlags has any value of a flag, all of them of the kind that has a syntax of its own.
func FuzzFlags(f *testing.F) {
	lines := []string{
		"RUN --mount=%s true", "RUN --network=%s true", "RUN --security=%s true", "RUN --device=%s true", "COPY --chown=%s a /b", "COPY --chmod=%s a /b", "COPY --exclude=%s a /b",
		"COPY --from=%s a /b", "COPY --parents=%s a /b/", "ADD --checksum=%s https://example.org/a /b", "ADD --unpack=%s a /b", "ADD --keep-git-dir=%s https://example.org/a.git /b",
		"HEALTHCHECK --interval=%s CMD true", "HEALTHCHECK --retries=%s CMD true", "FROM --platform=%s base", "RUN --%s true",
	}
	for i, values := range [][]string{
		{
			"type=bind,target=/x", "type=bind,from=base,source=/a,target=/b,rw", "type=cache,id=$A,target=x,sharing=locked,mode=0755,uid=1,gid=2,ro", "type=tmpfs,target=/t,size=1g",
			"type=secret,id=s,env=S,required=false", "type=ssh,id=default,mode=0600", `"type=bind","target=/a,b"`, "type=", "target=/", "type=cache,target=/c,from=nothing", "type=bind,,",
		},
		{"none", "host", "default", "x"}, {"insecure", "sandbox"}, {"vendor.com/device=gpu", "vendor.com/device=*,required"}, {"1", "a:b", ":b", "$A", "0:", "4294967296"},
		{"755", "u=rwX,go=rX", "a+x", "08", "$A", "u="}, {"*.md", "!a", "[", "**/x", ""}, {"base", "0", "$A", "scratch", ""}, {"true", "x"},
		{"sha256:" + strings.Repeat("0a", 32), "sha256:", "md5:x"}, {"true"}, {"false"}, {"1s", "1h2m", "-1s", "$A", "1"}, {"3", "-1"}, {"linux/arm64", "$BUILDPLATFORM", "x/y/z/w", ""},
		{"mont=type=bind", "mount", "=", ""},
	} {
		for _, v := range values {
			f.Add(uint(i), v)
		}
	}
	f.Fuzz(func(t *testing.T, line uint, value string) {
		if strings.ContainsAny(value, "\x00\r\n<\\`") {
			return
		}
		lower(t, "FROM base\nARG A=1\n"+strings.Replace(lines[line%uint(len(lines))], "%s", value, 1)+"\n")
	})
}

// setInPlace returns a copy of env in which name is value, at its old place where it has one.
func setInPlace(env []string, name, value string) []string {
	env = slices.Clone(env)
	for i, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); k == name {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}
