// Package parser turns the text of a Dockerfile into stages and instructions with their positions; it knows the language,
// not what an instruction does.
package parser

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Dockerfile is a parsed Dockerfile. Lowering expands variables in its instructions in place, so each lowering needs a
// Dockerfile of its own.
type Dockerfile struct {
	// File is the name under which the Dockerfile is shown.
	File string
	// Args are the ARG instructions above the first FROM.
	Args []instructions.ArgCommand
	// Stages has at least one element.
	Stages []instructions.Stage
	// Escape is the escape character, a backslash or a backtick.
	Escape rune
}

// Parse reads the Dockerfile text, which is shown as file in errors, and reports what rules of lint find while reading;
// lint must not be nil. Errors are of type *Error, or the cause of the end of ctx: then lint must not be used any more, since BuildKit's
// parser, which cannot be called off, may be using it for a while yet.
func Parse(ctx context.Context, file string, text []byte, lint *linter.Linter) (*Dockerfile, error) {
	type result struct {
		dockerfile *Dockerfile
		err        error
	}
	done := make(chan result, 1)
	go func() {
		df, err := parse(ctx, file, text, lint)
		done <- result{df, err}
	}()
	select {
	case r := <-done:
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return r.dockerfile, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

func parse(ctx context.Context, file string, text []byte, lint *linter.Linter) (*Dockerfile, error) {
	if len(text) == 0 {
		return nil, &Error{File: file, Msg: "the Dockerfile cannot be empty"}
	}
	if err := checkLines(file, text); err != nil {
		return nil, err
	}
	res, err := moby.Parse(reader{ctx, bytes.NewReader(text)})
	if err != nil {
		return nil, At(err, file, nil)
	}
	for _, w := range res.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL {
			lint.Run(&linter.RuleNoEmptyContinuation, []moby.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	if err := checkNodes(res.AST.Children); err != nil {
		return nil, At(err, file, nil)
	}
	stages, args, err := instructions.Parse(res.AST, lint)
	if err != nil {
		err = At(err, file, nil)
		if e, ok := errors.AsType[*Error](err); ok {
			e.Syntax = true
		}
		return nil, err
	}
	if len(stages) == 0 {
		return nil, &Error{File: file, Msg: "dockerfile contains no stages to build", Hint: "a FROM instruction begins one"}
	}
	return &Dockerfile{File: file, Args: args, Stages: stages, Escape: res.EscapeToken}, nil
}

// ParseTrigger reads the text of an ONBUILD trigger, which is one instruction, as if it stood at location of file.
// Errors are of type *Error.
func ParseTrigger(file, text string, location []moby.Range, lint *linter.Linter) (instructions.Command, error) {
	if err := checkLines(file, []byte(text)); err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			err = errors.New("the ONBUILD trigger: " + e.Msg)
		}
		return nil, At(err, file, location)
	}
	res, err := moby.Parse(strings.NewReader(text))
	if err == nil {
		err = checkNodes(res.AST.Children)
	}
	if err != nil {
		return nil, At(err, file, location)
	}
	if len(res.AST.Children) != 1 {
		return nil, At(fmt.Errorf("the ONBUILD trigger %q is not a single instruction", text), file, location)
	}
	node := res.AST.Children[0]
	node.StartLine, node.EndLine = Lines(location)
	node.PrevComment = nil
	v, err := instructions.ParseInstructionWithLinter(node, lint)
	if err != nil {
		return nil, At(err, file, location)
	}
	cmd, ok := v.(instructions.Command)
	if !ok {
		return nil, At(fmt.Errorf("%s is not allowed as an ONBUILD trigger", strings.ToUpper(node.Value)), file, location)
	}
	return cmd, nil
}

// Directive returns the value of a parser directive, "check" or "syntax", and its line; line 0 says that there is none.
// The syntax directive is also found in the forms that other languages than Dockerfile's have for it. Its value is an image, and words for
// that.
func Directive(name string, text []byte) (value string, line int) {
	find := moby.ParseDirective
	if name == "syntax" {
		find = func(_ string, text []byte) (string, string, []moby.Range, bool) {
			image, whole, location, ok := moby.DetectSyntax(text)
			return whole, image, location, ok
		}
	}
	value, _, location, ok := find(name, text)
	if !ok {
		return "", 0
	}
	line, _ = Lines(location)
	return value, max(line, 1)
}

// checkLines finds the faults for which moby's parser gives no or a wrong line: in directives, and lines that are too long.
func checkLines(file string, text []byte) error {
	var directives moby.DirectiveParser
	var i instruction
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	for n := 1; len(text) > 0; n++ {
		line, rest, found := bytes.Cut(text, []byte("\n"))
		text = rest
		if len(line) >= bufio.MaxScanTokenSize-1 && (found || len(line) >= bufio.MaxScanTokenSize) {
			return &Error{File: file, Line: n, EndLine: n, Msg: fmt.Sprintf("line is longer than %d bytes", bufio.MaxScanTokenSize-2)}
		}
		if bytes.IndexByte(line, 0) >= 0 {
			return &Error{File: file, Line: n, EndLine: n, Msg: "the line has a NUL byte, so it is not text in UTF-8"}
		}
		if err := i.line(file, n, line); err != nil {
			return err
		}
		d, err := directives.ParseLine(bytes.TrimSpace(line))
		if err != nil {
			return At(err, file, lineRange(n))
		}
		if d != nil && d.Name == "escape" && d.Value != "`" && d.Value != `\` {
			return At(fmt.Errorf("invalid escape token %q, it can be ` or \\", d.Value), file, lineRange(n))
		}
	}
	return nil
}

func lineRange(n int) []moby.Range {
	return []moby.Range{{Start: moby.Position{Line: n}, End: moby.Position{Line: n}}}
}
