package images

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/suggest"
)

// Filter chooses images as docker images --filter does. The zero value chooses all.
type Filter struct {
	// References are patterns as those of path.Match, for names without docker.io/library: "app", "app:v*", "*/app". One has to match.
	References []string
	// Dangling chooses images without a name if it is true, and those with one if it is false.
	Dangling *bool
	// Labels are "KEY" or "KEY=VALUE"; an image has all of them.
	Labels []string
	// Before and Since are images, as lookup finds them, that those chosen are older or newer than.
	Before, Since string
	// Until chooses images that are older; the zero time chooses all.
	Until time.Time
}

// ParseFilters reads values of --filter, as docker has them: "dangling=true", "label=KEY=VALUE", "before=IMAGE", "since=IMAGE",
// "reference=PATTERN" and "until=TIME", which is an age as "24h", seconds since 1970, or a date and time of RFC 3339. The error is an
// *input.Error.
func ParseFilters(values []string, now time.Time) (Filter, error) {
	var f Filter
	for _, v := range values {
		name, value, ok := strings.Cut(v, "=")
		err := error(nil)
		switch {
		case !ok || value == "":
			err = fmt.Errorf("it has no value")
		case name == "dangling":
			var dangling bool
			dangling, err = strconv.ParseBool(value)
			f.Dangling = &dangling
		case name == "label":
			f.Labels = append(f.Labels, value)
		case name == "before":
			f.Before = value
		case name == "since":
			f.Since = value
		case name == "reference":
			_, err = path.Match(value, "")
			f.References = append(f.References, value)
		case name == "until":
			f.Until, err = parseTime(value, now)
		default:
			err = fmt.Errorf("there are dangling, label, before, since, reference and until%s",
				suggest.Hint(name, "dangling", "label", "before", "since", "reference", "until"))
		}
		if err != nil {
			return f, &input.Error{Err: fmt.Errorf("--filter %q: %w", v, err)}
		}
	}
	return f, nil
}

func parseTime(s string, now time.Time) (time.Time, error) {
	if age, err := time.ParseDuration(s); err == nil {
		return now.Add(-age), nil
	}
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Unix(seconds, 0), nil
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is neither an age as 24h nor a time", s)
}

// Matching returns the images that a filter chooses, as List does. Of their names it returns those that match a reference.
func (set *Images) Matching(ctx context.Context, f Filter) ([]Info, error) {
	all, err := set.List(ctx)
	if err != nil {
		return nil, err
	}
	bound := func(name string) (time.Time, error) {
		if name == "" {
			return time.Time{}, nil
		}
		img, err := set.lookup(ctx, name)
		if err != nil {
			return time.Time{}, err
		}
		info, err := set.info(img.Desc)
		return info.Created, err
	}
	before, err := bound(f.Before)
	if err != nil {
		return nil, err
	}
	since, err := bound(f.Since)
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, info := range all {
		if len(f.References) > 0 {
			info.Names = slices.DeleteFunc(slices.Clone(info.Names), func(name string) bool { return !matches(f.References, name) })
			if len(info.Names) == 0 {
				continue
			}
		}
		older := func(than time.Time) bool { return than.IsZero() || info.Created.Before(than) }
		if f.Dangling != nil && *f.Dangling != (len(info.Names) == 0) || !info.labelled(f.Labels) ||
			!older(before) || !older(f.Until) || !since.IsZero() && !info.Created.After(since) {
			continue
		}
		out = append(out, info)
	}
	return out, nil
}

// labelled reports whether an image has labels.
func (i *Info) labelled(labels []string) bool {
	for _, want := range labels {
		key, value, valued := strings.Cut(want, "=")
		if have, ok := i.Labels[key]; !ok || valued && have != value {
			return false
		}
	}
	return true
}

// matches reports whether one of some patterns matches a full name without docker.io/library, with its tag or without it.
func matches(patterns []string, name string) bool {
	ref, err := imagename.Parse(name)
	if err != nil {
		return false
	}
	tagged := ref.FamiliarTagged()
	bare := strings.TrimSuffix(tagged, ":"+ref.Tag)
	return slices.ContainsFunc(patterns, func(p string) bool {
		if exact, err := imagename.Parse(p); err == nil { // as "docker.io/library/app"
			short := exact.FamiliarTagged()
			if _, tag := imagename.SplitTag(p); tag == "" {
				short = strings.TrimSuffix(short, ":"+exact.Tag)
			}
			if short == tagged || short == bare { // an address as [::1] would be a class of characters
				return true
			}
			p = short
		}
		whole, _ := path.Match(p, tagged) // what is malformed matches nothing
		part, _ := path.Match(p, bare)
		return whole || part
	})
}
