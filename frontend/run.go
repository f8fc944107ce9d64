package frontend

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/kilnbuild/kiln/frontend/fault"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// run lowers RUN.
func (b *builder) run(s *stage, c *instructions.RunCommand, sources []*stage) error {
	if b.runs && s.platform.OS != "linux" {
		return &parser.Error{
			Msg:  fmt.Sprintf("RUN for %s is not supported", s.platform),
			Hint: "kiln runs steps on Linux alone: a stage FROM --platform=$BUILDPLATFORM can make what COPY --from then takes",
			Err:  errors.ErrUnsupported,
		}
	}
	// All of this enters the digest of the step, however short the line is.
	if err := errors.Join(b.spendShell(s), b.budget.Spend(s.env.Size()+len(s.config.User()))); err != nil {
		return err
	}
	inputs := []llb.Output{s.root}
	args, script, err := runArgs(s, c)
	if err != nil {
		return err
	}
	op := llb.Exec{
		Args: args,
		Env:  s.env.All(),
		// As it is written: the kernel wants the directories before a "..", so those are made as well.
		Cwd:        cmp.Or(s.config.WorkingDir(), "/"),
		User:       s.config.User(),
		Hostname:   b.buildArgs["BUILDKIT_SANDBOX_HOSTNAME"],
		RunOptions: b.opts.RunOptions,
		Proxy:      b.proxy(),
		Shell:      s.config.Shell(),
	}
	if op.Network, err = b.network(c); err != nil {
		return err
	}
	if op.Security, err = b.security(c); err != nil {
		return err
	}
	if op.Devices, err = devices(c); err != nil {
		return err
	}
	if script != nil {
		inputs = append(inputs, b.scriptFile(s, script, c.Location()))
		op.Mounts = append(op.Mounts, llb.Mount{
			Type: llb.MountBind, Target: pipes, Input: len(inputs) - 1, Source: "/", ReadOnly: true,
		})
	}
	mounts, agent, inputs, err := b.mounts(s, c, sources, inputs)
	if err != nil {
		return err
	}
	op.Mounts = append(op.Mounts, mounts...)
	if _, ok := s.env.Get("SSH_AUTH_SOCK"); !ok && agent != "" {
		op.Env = append(op.Env, "SSH_AUTH_SOCK="+agent)
	}

	meta := b.runMeta(s, c)
	meta.NoCache = s.noCache
	meta.Platform = s.platform.String()
	v := b.graph.Add(op, meta, inputs...)
	s.root = v.Output(0)
	if s.config.Exported() {
		s.config.Commit("RUN "+strings.Join(append(s.argsInHistory(), args...), " ")+" # buildkit", v)
	}
	return nil
}

// pipes is where a heredoc that is a script of its own is seen.
const pipes = "/dev/pipes"

// runArgs returns the arguments that RUN executes, and the file to put below pipes where there is one.
func runArgs(s *stage, c *instructions.RunCommand) ([]string, *llb.Mkfile, error) {
	args := c.CmdLine
	var script *llb.Mkfile
	if len(c.Files) > 0 {
		if len(args) != 1 || !c.PrependShell {
			return nil, nil, errors.New("a heredoc needs the shell form of RUN")
		}
		first := c.Files[0]
		switch {
		case moby.MustParseHeredoc(args[0]) == nil:
			// The heredoc belongs to a command, so the shell has to see it whole.
			var text strings.Builder
			text.WriteString(args[0])
			for _, f := range c.Files {
				text.WriteString("\n" + f.Data + f.Name)
			}
			args = []string{text.String()}
		default:
			data := first.Data
			if first.Chomp {
				data = moby.ChompHeredocContent(data)
			}
			args = []string{data}
			if strings.HasPrefix(data, "#!") {
				if err := checkFileName(first.Name); err != nil {
					return nil, nil, err
				}
				script = &llb.Mkfile{Name: first.Name, Content: []byte(data)}
				args = []string{path.Join(pipes, first.Name)}
			}
		}
	}
	if c.PrependShell {
		args = append(s.shell(), strings.Join(args, " "))
	}
	if len(args) == 0 {
		return nil, nil, errors.New("RUN has no command")
	}
	return args, script, source.CheckCommand(args)
}

// checkFileName refuses a heredoc's delimiter that cannot be the name of a file.
func checkFileName(name string) error {
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("the heredoc's delimiter %q cannot be the name of a file", name)
	}
	return nil
}

func (b *builder) scriptFile(s *stage, f *llb.Mkfile, at []moby.Range) llb.Output {
	f.Path, f.Attributes = path.Join("/", f.Name), llb.Attributes{Chmod: "0755", Epoch: b.madeAt()}
	op := llb.File{Actions: []llb.Action{{Mkfile: f}}}
	return b.graph.Add(op, b.internalMeta(s, "preparing inline document", at), b.scratch()).Output(0)
}

// argsInHistory returns "|2 A=1 B=2": the ARGs that a RUN sees.
func (s *stage) argsInHistory() []string {
	if len(s.args.List()) == 0 {
		return nil
	}
	out := []string{fmt.Sprintf("|%d", len(s.args.List()))}
	for _, a := range s.args.List() {
		v, ok := s.env.Get(a.Key)
		if !ok {
			v = a.ValueString()
		}
		out = append(out, a.Key+"="+v)
	}
	return out
}

// runMeta returns the description of RUN. Variables that are not set stay as they are written, as the shell may set them.
func (b *builder) runMeta(s *stage, c *instructions.RunCommand) llb.Meta {
	env := masked{s.env, map[string]bool{}}
	for _, m := range instructions.GetMounts(c) {
		if m.Type == instructions.MountTypeSecret && m.Env != nil {
			env.names[*m.Env] = true
		}
	}
	text := c.String()
	if len(c.Files) > 0 && len(c.CmdLine) == 1 && moby.MustParseHeredoc(c.CmdLine[0]) != nil {
		body := strings.TrimSpace(c.Files[0].Data)
		line, _, more := strings.Cut(body, "\n")
		line = strings.TrimSuffix(line, "\r")
		if more {
			line += "..."
		}
		text += " (" + line + ")"
	}
	return b.stepMeta(s, text, b.shown, env, c.Location())
}

// masked is an environment in which some names are those of secrets.
type masked struct {
	shell.EnvGetter
	names map[string]bool
}

// Get implements shell.EnvGetter.
func (e masked) Get(name string) (string, bool) {
	if e.names[name] {
		return lint.Hidden, true
	}
	return e.EnvGetter.Get(name)
}

// network returns the network of RUN.
func (b *builder) network(c *instructions.RunCommand) (llb.Network, error) {
	n := llb.Network(instructions.GetNetwork(c))
	if n == llb.NetworkDefault && b.opts.Network != "" {
		n = b.opts.Network
	}
	if n == llb.NetworkHost && b.opts.Network != llb.NetworkHost && !slices.Contains(b.opts.Allow, "network.host") {
		return "", notAllowed("RUN --network=host", "network.host")
	}
	return n, nil
}

// security returns the confinement of RUN.
func (b *builder) security(c *instructions.RunCommand) (llb.Security, error) {
	s := llb.Security(instructions.GetSecurity(c))
	if s == llb.SecurityInsecure && !slices.Contains(b.opts.Allow, "security.insecure") {
		return "", notAllowed("RUN --security=insecure", "security.insecure")
	}
	if s == llb.SecurityInsecure && b.opts.NoInsecure != "" {
		return "", &parser.Error{Msg: "RUN --security=insecure is not possible here", Hint: b.opts.NoInsecure}
	}
	return s, nil
}

// devices returns the devices of RUN.
func devices(c *instructions.RunCommand) ([]llb.Device, error) {
	var devices []llb.Device
	for _, d := range instructions.GetDevices(c) {
		if d.Name == "" {
			return nil, errors.New("RUN --device has no name")
		}
		devices = append(devices, llb.Device{Name: d.Name, Required: d.Required})
	}
	return devices, nil
}

func notAllowed(what, entitlement string) error {
	err := &fault.EntitlementError{What: what, Entitlement: entitlement}
	return &parser.Error{Msg: err.Error(), Hint: "--allow " + entitlement + " allows it", Err: err}
}
