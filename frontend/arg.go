package frontend

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// setGlobalArgs sets the predefined arguments and those above the first FROM.
func (b *builder) setGlobalArgs(df *parser.Dockerfile) error {
	target := b.opts.Target
	if target == "" {
		target = df.Stages[len(df.Stages)-1].Name
	}
	if target == "" {
		target = "default"
	}
	b.global = nil
	set := func(prefix string, p llb.Platform) {
		for _, kv := range [][2]string{
			{"PLATFORM", p.String()}, {"OS", p.OS}, {"OSVERSION", p.OSVersion}, {"ARCH", p.Architecture}, {"VARIANT", p.Variant},
		} {
			b.global = b.global.with(prefix+kv[0], kv[1])
		}
	}
	set("BUILD", b.opts.BuildPlatform)
	set("TARGET", b.target)
	b.global = b.global.with("TARGETSTAGE", target)
	for _, name := range b.global.Keys() {
		if v, ok := b.buildArgs[name]; ok {
			b.global = b.global.with(name, v)
		}
	}
	b.lintDefaultArgs(df)
	global, err := b.metaArgs(df, b.buildArgs)
	if err != nil {
		return err
	}
	for _, c := range df.Args {
		for _, a := range c.Args {
			b.declared = append(b.declared, a.Key)
		}
	}
	b.global = global
	return nil
}

// metaArgs returns the global arguments after the ARGs above the first FROM, with values taking the place of defaults.
func (b *builder) metaArgs(df *parser.Dockerfile, values map[string]string) (environ, error) {
	env := b.global
	for _, c := range df.Args {
		if err := b.ended(); err != nil {
			return nil, err
		}
		for _, a := range c.Args {
			if v, ok := values[a.Key]; ok {
				env = env.with(a.Key, v)
			} else if a.Value != nil {
				v, _, err := b.lex.ProcessWord(*a.Value, env)
				if err != nil {
					return nil, b.at(err, c.Location())
				}
				env = env.with(a.Key, v)
			}
		}
	}
	return env, nil
}

// arg lowers ARG.
func (b *builder) arg(s *stage, c *instructions.ArgCommand, lint *linter.Linter) error {
	created := "ARG"
	for _, a := range c.Args {
		lintSecret("ARG", a.Key, c.Location(), lint)
		if v, ok := b.buildArgs[a.Key]; ok {
			a.Value = &v
		} else if a.Value != nil {
			v, unmatched, err := b.lex.ProcessWord(*a.Value, s.env)
			lintUnmatched(s, c, unmatched, lint)
			if err != nil {
				return err
			}
			a.Value = &v
		} else if v, ok := b.global.Get(a.Key); ok {
			a.Value = &v
		}
		created += " " + a.Key
		if a.Value != nil {
			created += "=" + *a.Value
			if !sbomArgs[a.Key] {
				s.env = s.env.with(a.Key, *a.Value)
			}
		}
		s.args = append(s.args, a)
	}
	s.commit(created, nil)
	return nil
}

// sbomArgs are arguments that are for the builder and never in the environment.
var sbomArgs = map[string]bool{"BUILDKIT_SBOM_SCAN_CONTEXT": true, "BUILDKIT_SBOM_SCAN_STAGE": true}

// proxies are the predefined proxy arguments, in the order in which a RUN has them.
var proxies = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// proxy returns the proxy variables of RUN, in upper and lower case each.
func (b *builder) proxy() []string {
	var out []string
	for _, name := range proxies {
		var found, value string
		for k, v := range b.buildArgs {
			// Of several spellings the last in order is taken, whatever the map's order is.
			if strings.EqualFold(k, name) && k >= found {
				found, value = k, v
			}
		}
		if value != "" {
			out = append(out, name+"="+value, strings.ToLower(name)+"="+value)
		}
	}
	return out
}
