package parser

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// BuildKit's parser calls itself for what is nested, and takes time and memory that grow with the square of some lists.
// These limits are far above what anybody writes; beyond them it would use up the stack, or the machine's memory.
const (
	// maxNested is how many variables with an operator, "${A:-…}", an instruction with "<<" may have: each may be in the one before.
	maxNested = 256
	// maxOnBuild is how many times one instruction may have the word ONBUILD.
	maxOnBuild = 1000
	// maxHeredocs bounds the heredocs of one COPY or ADD in bytes: each name stands for the last heredoc of that name.
	maxHeredocs = 16 << 20
	// maxComments bounds the comments above an ARG times its names.
	maxComments = 1 << 20
	// maxName bounds the names of instructions and flags, which are compared with those that there are.
	maxName = 256
)

// instruction is what is known of an instruction while its lines are read, before BuildKit's parser has put them
// together. In heredocs, which it takes for lines of instructions, it may count too much.
type instruction struct {
	begin, end int // lines
	heredoc    bool
	nested     int
	onBuild    int
	open       bool // there are more lines
}

// line adds line n, and returns an error if the instruction is more than BuildKit's parser can take.
func (i *instruction) line(file string, n int, line []byte) error {
	line = bytes.TrimRight(line, " \t\r")
	text := bytes.TrimLeft(line, " \t")
	skipped := len(text) == 0 || text[0] == '#'
	if skipped && i.open {
		return nil // as in BuildKit, they end no instruction
	}
	if !i.open {
		*i = instruction{begin: n}
	}
	i.end = n
	last := len(line) - 1
	i.open = !skipped && (line[last] == '\\' || line[last] == '`') // whatever the escape character is
	i.heredoc = i.heredoc || bytes.Contains(line, []byte("<<"))
	i.nested += operators(line)
	i.onBuild += bytes.Count(bytes.ToUpper(line), []byte("ONBUILD"))
	at := func(format string, args ...any) error {
		return &Error{File: file, Line: i.begin, EndLine: i.end, Msg: fmt.Sprintf(format, args...)}
	}
	if i.heredoc && i.nested > maxNested {
		return at("an instruction with << has more than %d variables with an operator, as ${name:-word}", maxNested)
	}
	if i.onBuild > maxOnBuild {
		return at("the instruction has the word ONBUILD more than %d times", maxOnBuild)
	}
	return nil
}

// operators returns how many "${" of a line may have something nested in them: all but "${name}".
func operators(line []byte) (n int) {
	for {
		at := bytes.IndexByte(line, '$')
		if at < 0 {
			return n
		}
		line = line[at+1:]
		if len(line) > 0 && line[0] != '{' && line[0] != '\\' && line[0] != '`' {
			continue
		}
		end := 1
		for end < len(line) && (line[end] == '_' || '0' <= line[end] && line[end] <= '9' || 'A' <= line[end]&^0x20 && line[end]&^0x20 <= 'Z') {
			end++
		}
		if end >= len(line) || line[end] != '}' {
			n++
		}
	}
}

// checkNodes refuses instructions for which instructions.Parse would need much more than they have.
func checkNodes(nodes []*moby.Node) error {
	for _, n := range nodes {
		var err error
		if len(n.Value) > maxName {
			err = fmt.Errorf("unknown instruction: %s…", n.Value[:maxName])
		}
		for _, flag := range n.Flags {
			if name, _, _ := strings.Cut(flag, "="); len(name) > maxName {
				err = fmt.Errorf("unknown flag: %s…", name[:maxName])
			}
		}
		switch strings.ToLower(n.Value) {
		case command.Copy, command.Add:
			err = checkHeredocs(n)
		case command.Arg:
			names := 0
			for arg := n.Next; arg != nil; arg = arg.Next {
				names++
			}
			if names*len(n.PrevComment) > maxComments {
				err = fmt.Errorf("%d comments above an ARG of %d names are too many", len(n.PrevComment), names)
			}
		}
		if err != nil {
			return moby.WithLocation(err, n.Location())
		}
	}
	return nil
}

func checkHeredocs(n *moby.Node) error {
	if len(n.Heredocs) == 0 {
		return nil
	}
	sizes := map[string]int{}
	for _, h := range n.Heredocs {
		sizes[h.Name] = len(h.Content)
	}
	total := 0
	for arg := n.Next; arg != nil; arg = arg.Next {
		if !strings.Contains(arg.Value, "<<") {
			continue
		}
		if h := moby.MustParseHeredoc(arg.Value); h != nil {
			total += sizes[h.Name]
		}
		if total > maxHeredocs {
			return fmt.Errorf("the heredocs have more than %d MiB together", maxHeredocs>>20)
		}
	}
	return nil
}
