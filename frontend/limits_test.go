package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// TestExpansionIsBounded has words that become much larger than the Dockerfile: they are refused, with their line,
// before anything becomes large.
func TestExpansionIsBounded(t *testing.T) {
	double := func(times int) string { return strings.Repeat("ENV A=$A$A\n", times) }
	for name, c := range map[string]struct {
		text string
		says string // "" for one that is taken
		args map[string]string
	}{
		"a value of a megabyte":         {"ENV A=" + "x\n" + double(20), "", nil},
		"and more":                      {"ENV A=" + "x\n" + double(21), "becomes larger than 1 MiB", nil},
		"doubled 40 times":              {"ENV A=x\n" + double(40), "becomes larger than 1 MiB", nil},
		"as it is written":              {"ENV A=" + strings.Repeat(strings.Repeat("x", 60000)+"\\\n", 20) + "\n", "becomes larger than 1 MiB", nil},
		"ARG":                           {"ARG A=x\n" + strings.Repeat("ARG A=$A$A\n", 40), "becomes larger than 1 MiB", nil},
		"from a build argument":         {"ARG A\n" + double(5), "becomes larger than 1 MiB", map[string]string{"A": strings.Repeat("x", 100000)}},
		"a default":                     {"ENV A=x\n" + strings.Repeat("ENV A=${B:-$A$A}\n", 40), "becomes larger than 1 MiB", nil},
		"a default that is not used":    {"ENV A=x\n" + double(19) + "ENV B=${A:-" + strings.Repeat("$A", 200) + "}\n", "becomes larger than 1 MiB", nil},
		"an alternative":                {"ENV A=x\n" + strings.Repeat("ENV A=${A:+$A$A}\n", 40), "becomes larger than 1 MiB", nil},
		"replacements":                  {"ENV A=xxxxxxxxxxxxxxxx\n" + strings.Repeat("ENV A=${A//x/$A}\n", 10), "becomes larger than 1 MiB", nil},
		"replacements of all":           {"ENV A=x B='$0'\n" + double(19) + strings.Repeat("ENV B=$B$B\n", 18) + "ENV C=${A//*/$B}\n", "becomes larger than 1 MiB", nil},
		"replacements in each other":    {"ENV A=" + strings.Repeat("x", 1000) + "\nENV B=${A//x/${A//x/${A//x/${A//x/$A}}}}\n", "becomes larger than 1 MiB", nil},
		"several replacements":          {"ENV A=" + strings.Repeat("x:", 1000) + "\nENV B=${A//:/,}${A//x/yy}${A//:/;}${A//?/..}\n", "", nil},
		"a pattern that takes too long": {"ENV A=x P=?*\n" + double(19) + strings.Repeat("ENV P=$P$P\n", 18) + "ENV B=${A##$P}\n", "take too long", nil},
		"deeply nested":                 {"ENV A=" + strings.Repeat("${A:-", 2000) + strings.Repeat("}", 2000) + "\n", "more than 100 of them in each other", nil},
		"very deeply nested":            {"ENV A=" + strings.Repeat(strings.Repeat("${A:-", 10000)+"\\\n", 10) + "\n", "more than 100 of them in each other", nil},
		"nested as deep as may be":      {"ENV A=" + strings.Repeat("${A:-", 100) + "x" + strings.Repeat("}", 100) + "\n", "", nil},
		"nested in a RUN":               {"RUN <<E " + strings.Repeat("${A:-", 10000) + "\nE\n", "more than 256 variables with an operator", nil},
		"labels":                        {"ENV A=x\n" + double(19) + "LABEL" + strings.Repeat(" a=$A", 12) + "\n", "configuration", nil},
		"very many labels":              {"ENV A=x\n" + double(20) + "LABEL" + strings.Repeat(" a=$A", 5000) + "\n", "more than 64 MiB in all", nil},
		"history":                       {"ENV A=x\n" + double(20) + strings.Repeat("USER $A\n", 5), "configuration", nil},
		"arguments in the history":      {"ARG A=x\n" + strings.Repeat("ARG A=$A$A\n", 19) + strings.Repeat("RUN true\n", 10), "configuration", nil},
		"ports":                         {"EXPOSE " + strings.Repeat("0-65535 ", 1000) + "\n", "more than 256 MiB in all", nil},
		"ports in the history":          {strings.Repeat("EXPOSE 0-65535\n", 10), "configuration", nil},
		"a heredoc":                     {"ENV A=x\n" + double(20) + "COPY <<E /f\n" + strings.Repeat("$A\n", 17) + "E\n", "becomes larger than 16 MiB", nil},
		"many names of one heredoc":     {"COPY " + strings.Repeat("<<A ", 3000) + "/f\n" + strings.Repeat("A\n", 2999) + strings.Repeat("x", 10000) + "\nA\n", "heredocs have more than 16 MiB together", nil},
		"mounts":                        {"ENV A=x\n" + double(18) + "RUN" + strings.Repeat(" --mount=type=cache,target=/$A", 2000) + " true\n", "more than 64 MiB in all", nil},
		"environments of steps":         {"ENV A=x\n" + double(19) + strings.Repeat("RUN true\n", 600), "more than 256 MiB in all", nil},
		"shells of steps":               {`SHELL ["` + strings.Repeat("x", 60000) + "\"]\nFROM scratch\n" + `SHELL ["` + strings.Repeat("x", 60000) + "\"]\n" + strings.Repeat("RUN x\n", 5000), "", nil},
		"a long directory":              {strings.Repeat("WORKDIR "+strings.Repeat("x", 100)+"\n", 50), "longer than the 4095 bytes", nil},
		"ONBUILD of ONBUILD":            {strings.Repeat(strings.Repeat("ONBUILD ", 500)+"\\\n", 100) + "RUN x\n", "ONBUILD more than 1000 times", nil},
		"names of a FROM":               {"ARG A=x\n" + strings.Repeat("ARG A=$A$A\n", 10) + "FROM $A\n", "should not be blank", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "shells of steps" {
				c.says = "configuration"
			}
			_, err := Build(t.Context(), []byte("FROM scratch\n"+c.text), Options{BuildPlatform: amd64, BuildArgs: c.args}, fakeImages{})
			if c.says == "" {
				if err != nil {
					t.Errorf("error %.300v", err)
				}
				return
			}
			e, ok := errors.AsType[*parser.Error](err)
			if !ok || !strings.Contains(e.Msg, c.says) || e.Line < 1 || len(e.Msg) > 1000 {
				t.Errorf("error %.300v, want one that says %q", err, c.says)
			}
		})
	}
	above := "ARG A=x\n" + strings.Repeat("ARG A=$A$A\n", 40) + "FROM scratch\n"
	if _, err := Build(t.Context(), []byte(above), Options{BuildPlatform: amd64}, fakeImages{}); err == nil || !strings.Contains(err.Error(), "becomes larger than 1 MiB") {
		t.Errorf("above FROM: error %.300v", err)
	}
}

// A progress line is no reason to refuse a step: what becomes too large is shown as it is written.
func TestLongNames(t *testing.T) {
	res, err := Build(t.Context(), []byte("FROM scratch AS a\nENV A=x\n"+strings.Repeat("ENV A=$A$A\n", 17)+"RUN echo "+strings.Repeat("$A", 100)+"\nFROM scratch\nCOPY --from=a / /\n"), Options{BuildPlatform: amd64}, fakeImages{})
	if err != nil {
		t.Fatal(err)
	}
	run := res.Images[0].Root.Vertex.Inputs()[1].Vertex
	if want := "RUN echo " + strings.Repeat("$A", 100); run.Meta().Text != want {
		t.Errorf("the step is called %.200q", run.Meta().Text)
	}
}

// bigImages has an image with many triggers, and one with a large configuration.
type bigImages struct{ triggers int }

func (b bigImages) ResolveImage(_ context.Context, req ImageRequest) (*BaseImage, error) {
	image := &BaseImage{Digest: "sha256:" + strings.Repeat("ab", 32)}
	image.Config.OS, image.Config.Architecture = "linux", "amd64"
	for i := range b.triggers {
		image.Config.Config.OnBuild = append(image.Config.Config.OnBuild, fmt.Sprintf("ENV A%d=%d", i, i))
	}
	if strings.Contains(req.Ref, "large") {
		image.Config.Config.Env = []string{"A=" + strings.Repeat("x", 4000000)}
	}
	return image, nil
}

// TestManyInstructions lowers Dockerfiles of very many instructions and stages. Time that grows with the square of their
// number would be hours.
func TestManyInstructions(t *testing.T) {
	each := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(strings.ReplaceAll(strings.ReplaceAll(format, "%d", fmt.Sprint(i)), "%e", fmt.Sprint(i+1)))
		}
		return b.String()
	}
	const last = "FROM scratch\nCOPY --from=a / /\n"
	const n = 30000
	for name, c := range map[string]struct {
		text string
		says string
	}{
		"ENV":                     {"FROM scratch AS a\n" + each(n, "ENV A%d=%d\n") + last, ""},
		"ENV of one name":         {"FROM scratch AS a\n" + each(n, "ENV A=%d\n") + last, ""},
		"ENV of many":             {"FROM scratch AS a\nENV" + each(n, " A%d=%d\\\n") + " B=1\n" + last, ""},
		"ENV of the target":       {"FROM scratch\n" + each(30000, "ENV A%d=%d\n"), ""},
		"ARG":                     {"FROM scratch AS a\n" + each(n, "ARG A%d=%d\n") + last, ""},
		"ARG above FROM":          {each(n, "ARG A%d=%d\n") + "FROM scratch\n", ""},
		"ARG and RUN":             {"FROM scratch AS a\n" + each(n, "ARG A=%d\nRUN true\n") + last, ""},
		"LABEL":                   {"FROM scratch AS a\n" + each(n, "LABEL A%d=%d\n") + last, ""},
		"VOLUME":                  {"FROM scratch AS a\n" + each(n, "VOLUME /%d\n") + last, ""},
		"EXPOSE":                  {"FROM scratch AS a\n" + each(n, "EXPOSE 80\n") + last, ""},
		"ONBUILD":                 {"FROM scratch AS a\n" + each(n, "ONBUILD RUN %d\n") + last, ""},
		"CMD":                     {"FROM scratch AS a\n" + each(n, "CMD %d\n") + last, ""},
		"WORKDIR":                 {"FROM scratch AS a\n" + each(n, "WORKDIR /a\n") + last, ""},
		"WORKDIR of the target":   {"FROM scratch\n" + each(30000, "WORKDIR /a\n"), ""},
		"COPY":                    {"FROM scratch\nCOPY" + each(n, " %d\\\n") + " /\n", ""},
		"COPY and installations":  {"FROM scratch AS a\n" + each(10000, "COPY %d /etc/\n") + each(10000, "RUN apt-get install %d\n") + last, ""},
		"installations of a RUN":  {"FROM scratch\nRUN rm /var/lib/apt" + each(n, "; apt install %d\\\n") + "\n", ""},
		"ADD":                     {"FROM scratch AS a\nADD" + each(30000, " http://u@h/%d\\\n") + " /\n" + last, ""},
		"undefined":               {"FROM scratch AS a\n" + each(n/4, "ENV ABCD%d=1\n") + each(n/4, "ENV A=$ABCDE%d\n") + last, ""},
		"undefined in FROM":       {each(n/4, "ARG ABCD%d=1\n") + each(n/4, "FROM scratch$ABCDE%d\n"), ""},
		"heredocs of a RUN":       {"FROM scratch\nRUN x" + each(20000, " <<A\\\n") + " y\n" + strings.Repeat("A\n", 20000), ""},
		"stages":                  {each(n, "FROM scratch AS s%d\n"), ""},
		"stages of stages":        {"FROM scratch AS a\n" + each(n, "FROM a AS a\nUSER %d\n") + last, ""},
		"stages of stages as is":  {"FROM scratch AS a\n" + each(n, "ENV A%d=1\n") + each(20, "FROM a AS a\n") + last, ""},
		"stages with ENV":         {"FROM scratch AS a\n" + each(n, "FROM a AS a\nENV A%d=1\n") + last, "more than 256 MiB in all"},
		"stages with LABEL":       {"FROM scratch AS a\n" + each(n, "FROM a AS a\nLABEL A%d=1\n") + last, "more than 256 MiB in all"},
		"stages with ARG":         {"FROM scratch AS a\n" + each(n, "FROM a AS a\nARG A%d\n") + last, "more than 256 MiB in all"},
		"stages that copy":        {"FROM scratch AS s0\n" + each(n, "FROM scratch AS s%e\nCOPY --from=s%d / /\n"), ""},
		"triggers":                {"FROM image\n", "configuration"},
		"triggers of many stages": {"FROM image AS s0\n" + each(200, "FROM image AS s%e\nCOPY --from=s%d / /\n"), "ONBUILD triggers of all stages"},
		"a large image":           {"FROM large AS s0\n" + each(1000, "FROM large AS s%e\nCOPY --from=s%d / /\n"), "more than 256 MiB in all"},
	} {
		t.Run(name, func(t *testing.T) {
			images := bigImages{}
			if strings.Contains(c.text, "FROM image") {
				images.triggers = 100000
			}
			_, err := Build(t.Context(), []byte(c.text), Options{BuildPlatform: amd64}, images)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error %.300v, want one that says %q", err, c.says)
			}
		})
	}
}

// The size that a configuration is taken for is at most its real size, and not much less.
func TestConfigSize(t *testing.T) {
	text := "FROM scratch\n" + strings.Repeat("ENV A=1 B=\"x && y\"\nLABEL a=<>\nEXPOSE 80\nVOLUME /v\nRUN a && b\nCMD x\nHEALTHCHECK CMD x\nONBUILD RUN x\n", 100)
	check, _, err := lint.New([]byte(text), "Dockerfile", nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{ctx: t.Context(), opts: &Options{}, graph: &llb.Graph{}, images: &images{resolver: fakeImages{}}, check: check, target: amd64}
	image, err := b.build([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	config := dockerspec.DockerOCIImage{Config: image.Config}
	config.Author = image.Author
	var created time.Time
	for _, h := range image.History {
		config.History = append(config.History, ocispecs.History{Created: &created, CreatedBy: h.CreatedBy, Comment: h.Comment, EmptyLayer: h.Empty})
		if !h.Empty {
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString(""))
		}
	}
	data, err := json.Marshal(config)
	size := b.stages[0].config.Size()
	if err != nil || size > len(data) || size < len(data)*3/4 {
		t.Errorf("the configuration has %d bytes and was taken for %d: %v", len(data), size, err)
	}
}
