package frontend

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/scan"
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
	b.global = expand.NewEnv(b.budget)
	var predefined, given [][2]string
	set := func(prefix string, p llb.Platform) {
		for _, kv := range [][2]string{
			{"PLATFORM", p.String()}, {"OS", p.OS}, {"OSVERSION", p.OSVersion}, {"ARCH", p.Architecture}, {"VARIANT", p.Variant},
		} {
			predefined = append(predefined, [2]string{prefix + kv[0], kv[1]})
		}
	}
	set("BUILD", b.opts.BuildPlatform)
	set("TARGET", b.target)
	predefined = append(predefined, [2]string{"TARGETSTAGE", target})
	for _, kv := range predefined {
		if v, ok := b.buildArgs[kv[0]]; ok {
			given = append(given, [2]string{kv[0], v})
		}
	}
	for _, kv := range append(predefined, given...) {
		if err := b.global.Set(kv[0], kv[1]); err != nil {
			return err
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
func (b *builder) metaArgs(df *parser.Dockerfile, values map[string]string) (*expand.Env, error) {
	env := b.global.Fork()
	for _, c := range df.Args {
		if err := b.ended(); err != nil {
			return nil, err
		}
		for _, a := range c.Args {
			v, ok := values[a.Key]
			if !ok && a.Value == nil {
				continue
			}
			var err error
			if !ok {
				v, _, err = b.words.Word(*a.Value, env)
			}
			if err == nil {
				err = env.Set(a.Key, v)
			}
			if err != nil {
				return nil, b.at(err, c.Location())
			}
		}
	}
	return env, nil
}

// arg lowers ARG.
func (b *builder) arg(s *stage, c *instructions.ArgCommand, check *linter.Linter) error {
	var created strings.Builder
	created.WriteString("ARG")
	for _, a := range c.Args {
		lint.Secret("ARG", a.Key, c.Location(), check)
		if v, ok := b.buildArgs[a.Key]; ok {
			a.Value = &v
		} else if a.Value != nil {
			v, unmatched, err := b.words.Word(*a.Value, s.env)
			b.lintUnmatched(s, c, unmatched, check)
			if err != nil {
				return err
			}
			a.Value = &v
		} else if v, ok := b.global.Get(a.Key); ok {
			a.Value = &v
		}
		created.WriteString(" " + a.Key)
		if a.Value != nil {
			created.WriteString("=" + *a.Value)
			if !scan.IsArg(a.Key) {
				if err := s.env.Set(a.Key, *a.Value); err != nil {
					return err
				}
			}
		}
		if err := s.args.Set(a); err != nil {
			return err
		}
	}
	s.config.Commit(created.String(), nil)
	return nil
}

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
