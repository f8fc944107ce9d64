// Package subrequest has the answers to questions about a Dockerfile, which clients ask in place of a build, in BuildKit's forms: the
// metadata of a result without file systems.
package subrequest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/frontend/outline"
	"github.com/kilnbuild/kiln/llb"
)

// The IDs of the requests.
const (
	IDDescribe = "frontend.subrequests.describe"
	IDLint     = "frontend.lint"
	IDOutline  = "frontend.outline"
	IDTargets  = "frontend.targets"
)

// The keys of the metadata of an answer.
const (
	keyJSON    = "result.json"
	keyText    = "result.txt"
	keyStatus  = "result.statuscode"
	keyVersion = "version"
)

const version = "1.0.0"

// Unsupported returns the error of a request that kiln does not answer. Clients recognise its type.
func Unsupported(id string) error { return errdefs.NewUnsupportedSubrequestError(id) }

// answer returns the metadata of an answer: v as JSON, and as the text that write writes.
func answer(v any, write func(io.Writer)) (map[string][]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the answer to a request: %w", err)
	}
	var text bytes.Buffer
	write(&text)
	return map[string][]byte{keyJSON: data, keyText: text.Bytes(), keyVersion: []byte(version)}, nil
}

// table writes rows in columns, which are padded by at least pad spaces.
func table(w io.Writer, pad int, rows ...[]string) {
	t := tabwriter.NewWriter(w, 0, 0, pad, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	_ = t.Flush() // into memory
}

// named is something that a request takes or gives.
type named struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// request says what one request is.
type request struct {
	Name        string  `json:"name"`
	Version     string  `json:"version"`
	Type        string  `json:"type"`
	Description string  `json:"description"`
	Opts        []named `json:"opts"`
	Inputs      []named `json:"inputs"`
	Metadata    []named `json:"metadata"`
	Refs        []named `json:"refs"`
}

// requests are those that kiln answers.
var requests = []request{
	{
		Name: IDOutline, Description: "List all parameters current build target supports",
		Opts: []named{{"target", "Target build stage"}}, Metadata: []named{{Name: keyJSON}, {Name: keyText}},
	},
	{Name: IDTargets, Description: "List all targets current build supports", Metadata: []named{{Name: keyJSON}, {Name: keyText}}},
	{Name: IDLint, Description: "Lint a Dockerfile", Metadata: []named{{Name: keyJSON}, {Name: keyText}, {Name: keyStatus}}},
	{Name: IDDescribe, Description: "List available subrequest types", Metadata: []named{{Name: keyJSON}, {Name: keyText}}},
}

// Describe answers which requests there are.
func Describe() (map[string][]byte, error) {
	all := slices.Clone(requests)
	rows := [][]string{{"NAME", "VERSION", "DESCRIPTION"}}
	for i := range all {
		all[i].Version, all[i].Type = version, "rpc"
		rows = append(rows, []string{strings.TrimPrefix(all[i].Name, "frontend."), version, all[i].Description})
	}
	return answer(all, func(w io.Writer) { table(w, 1, rows...) })
}

// Targets answers which stages there are.
func Targets(list *outline.TargetList) (map[string][]byte, error) {
	rows := [][]string{{"TARGET", "DESCRIPTION"}}
	for _, t := range list.Targets {
		name := t.Name
		if t.Default {
			name = strings.TrimSpace(name + " (default)")
		}
		rows = append(rows, []string{name, t.Description})
	}
	return answer(list, func(w io.Writer) { table(w, 1, rows...) })
}

// Outline answers what a target can be given.
func Outline(o *outline.Outline) (map[string][]byte, error) {
	return answer(o, func(w io.Writer) {
		if o.Name != "" || o.Description != "" {
			name := o.Name
			if name == "" {
				name = "(default)"
			}
			rows := [][]string{{"TARGET:", name}}
			if o.Description != "" {
				rows = append(rows, []string{"DESCRIPTION:", o.Description})
			}
			table(w, 1, rows...)
			fmt.Fprintln(w)
		}
		if len(o.Args) > 0 {
			rows := [][]string{{"BUILD ARG", "VALUE", "DESCRIPTION"}}
			for _, a := range o.Args {
				rows = append(rows, []string{a.Name, a.Shown(), a.Description})
			}
			table(w, 3, rows...)
			fmt.Fprintln(w)
		}
		writeMounts(w, "SECRET", o.Secrets)
		writeMounts(w, "SSH", o.SSH)
	})
}

func writeMounts(w io.Writer, title string, list []outline.Mount) {
	if len(list) == 0 {
		return
	}
	rows := [][]string{{title, "REQUIRED"}}
	for _, m := range list {
		required := ""
		if m.Required {
			required = "true"
		}
		rows = append(rows, []string{m.Name, required})
	}
	table(w, 3, rows...)
	fmt.Fprintln(w)
}

// Warning is what a check found.
type Warning struct {
	// Rule is the name of the check, Description what it is about, and URL where more is.
	Rule, Description, URL string
	// Detail says what is wrong with this Dockerfile.
	Detail   string
	Location llb.Location
}

type lintWarning struct {
	RuleName    string       `json:"ruleName"`
	Description string       `json:"description,omitempty"`
	URL         string       `json:"url,omitempty"`
	Detail      string       `json:"detail,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

type lintError struct {
	Message  string       `json:"message"`
	Location *pb.Location `json:"location"`
}

type lintResults struct {
	Warnings []lintWarning    `json:"warnings"`
	Sources  []*pb.SourceInfo `json:"sources"`
	Error    *lintError       `json:"buildError,omitempty"`
}

// Lint answers what checks found in a Dockerfile. err is why the build would fail, nil if it would not, and at are the lines that it is
// about.
func Lint(dockerfile *pb.SourceInfo, warnings []Warning, err error, at llb.Location) (map[string][]byte, error) {
	warnings = slices.Clone(warnings)
	slices.SortStableFunc(warnings, func(x, y Warning) int { return x.Location.StartLine - y.Location.StartLine })
	results := lintResults{Warnings: []lintWarning{}, Sources: []*pb.SourceInfo{dockerfile}}
	for _, w := range warnings {
		results.Warnings = append(results.Warnings, lintWarning{w.Rule, w.Description, w.URL, w.Detail, location(w.Location)})
	}
	status := "0"
	if len(warnings) > 0 {
		status = "1"
	}
	if err != nil {
		status = "1"
		results.Error = &lintError{apierr.Text(err), location(at)}
	}
	metadata, err := answer(results, func(w io.Writer) {
		for _, found := range results.Warnings {
			writeWarning(w, dockerfile, found)
		}
	})
	if err == nil {
		metadata[keyStatus] = []byte(status)
	}
	return metadata, err
}

func location(l llb.Location) *pb.Location {
	at := &pb.Location{}
	if l.StartLine > 0 {
		at.Ranges = apierr.Ranges(l.StartLine, l.EndLine)
	}
	return at
}

func writeWarning(w io.Writer, dockerfile *pb.SourceInfo, found lintWarning) {
	fmt.Fprintf(w, "\nWARNING: %s", found.RuleName)
	if found.URL != "" {
		fmt.Fprintf(w, " - %s", found.URL)
	}
	fmt.Fprintf(w, "\n%s\n", found.Detail)
	source := errdefs.Source{Info: dockerfile, Ranges: found.Location.Ranges}
	_ = source.Print(w) // into memory
}

// readLint reads what another frontend's checks found in a Dockerfile. The error also says why the Dockerfile cannot be built, if it
// cannot.
func readLint(answer []byte) ([]Warning, error) {
	var results lintResults
	if err := json.Unmarshal(answer, &results); err != nil {
		return nil, err
	}
	var all []Warning
	for _, w := range results.Warnings {
		found := Warning{Rule: w.RuleName, Description: w.Description, URL: w.URL, Detail: w.Detail}
		if at := w.Location; len(at.GetRanges()) > 0 {
			if i := int(at.SourceIndex); i >= 0 && i < len(results.Sources) {
				found.Location.File = results.Sources[i].GetFilename()
			}
			found.Location.StartLine = int(at.Ranges[0].GetStart().GetLine())
			found.Location.EndLine = int(at.Ranges[len(at.Ranges)-1].GetEnd().GetLine())
		}
		all = append(all, found)
	}
	if e := results.Error; e != nil {
		return all, &BuildError{e.Message}
	}
	return all, nil
}

// BuildError says why a Dockerfile cannot be built, in the words of its frontend.
type BuildError struct{ Message string }

func (e *BuildError) Error() string { return e.Message }

// ids are what is asked for in place of a build.
var ids = map[build.Call]string{build.CallCheck: IDLint, build.CallOutline: IDOutline, build.CallTargets: IDTargets}

// ID returns the ID of the request for what a command line asks for; "" for a build.
func ID(call build.Call) string { return ids[call] }

// Read reads the answer of another frontend, the metadata of its result, into the result of a command line.
func Read(call build.Call, answer map[string][]byte, res *build.Result) (err error) {
	switch call {
	case build.CallOutline:
		res.Outline = &build.Outline{}
		err = json.Unmarshal(answer[keyJSON], res.Outline)
	case build.CallTargets:
		res.Targets = &build.TargetList{}
		err = json.Unmarshal(answer[keyJSON], res.Targets)
	case build.CallCheck:
		var found []Warning
		found, err = readLint(answer[keyJSON])
		for _, w := range found {
			res.Warnings = append(res.Warnings, build.Warning{
				Rule: w.Rule, Message: w.Detail, Description: w.Description, URL: w.URL, Location: w.Location,
			})
		}
	}
	if err != nil && !errors.As(err, new(*BuildError)) {
		err = fmt.Errorf("its answer cannot be read: %w", err)
	}
	return err
}
