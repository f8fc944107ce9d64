package cachecmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/cache/mounts"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

func mountsGroup(a *app.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "mounts COMMAND", Short: "List, remove, export and import cache mounts", Args: cobra.ArbitraryArgs, RunE: app.HelpOrUnknown,
		Long: "List, remove, export and import the files of RUN --mount=type=cache in the root directory.\n\n" + aboutMounts,
	}
	cmd.AddCommand(listMounts(a), removeMounts(a), exportMounts(a), importMounts(a))
	return cmd
}

const aboutMounts = `The ID of a cache mount is what the Dockerfile says, id=ID, or else its target, such as /root/.npm. A NAME, as kiln cache mounts ls shows
it, is that of one among several with the same ID.`

// local is the root directory as the commands for cache mounts use it.
type local struct {
	*app.Kiln
	disk *dir.FS
	tmp  string
}

func withMounts(ctx context.Context, a *app.App, f func(l *local) error) error {
	return a.WithRoot(ctx, func(k *app.Kiln) error {
		work, err := k.Root.Work()
		if err != nil {
			return &app.InternalError{Err: err}
		}
		ns, err := userns.Current()
		if err != nil {
			return err
		}
		disk, err := dir.NewFS(work.Scratch.Path(), ns)
		if err != nil {
			return err
		}
		return f(&local{k, disk, work.Scratch.Path()})
	})
}

// minName is how many digits of a NAME say which one is meant.
const minName = 12

// shortName returns what ls shows of a name.
func shortName(name string) string {
	key, number, private := strings.Cut(name, "-")
	if private {
		return key[:minName] + "-" + number
	}
	return key[:minName]
}

// find returns the cache mounts that words name: all that have an ID, or the one with a NAME. It is an error if there is none.
func (l *local) find(words []string) ([]cachemount.Cache, error) {
	all, err := cachemount.List(l.Root.Dir())
	if err != nil {
		return nil, err
	}
	var found []cachemount.Cache
	taken := map[string]bool{}
	for _, word := range words {
		any := false
		for _, c := range all {
			byID := c.ID != "" && cachemount.SameID(c.ID, word)
			if !byID && word != c.Name && word != shortName(c.Name) {
				continue
			}
			if any = true; !taken[c.Name] {
				taken[c.Name] = true
				found = append(found, c)
			}
		}
		if !any {
			return nil, fmt.Errorf("no cache mount has the ID or NAME %q: kiln cache mounts ls lists them", word)
		}
	}
	return found, nil
}

// called returns what people call a cache mount.
func called(c *cachemount.Cache) string {
	if c.ID == "" {
		return shortName(c.Name)
	}
	return c.ID
}

// mountRow is a cache mount as it is listed.
type mountRow struct {
	ID    string    `json:"id"`
	Name  string    `json:"name"`
	Size  int64     `json:"size"`
	Files int       `json:"files"`
	Used  time.Time `json:"used"`
	InUse bool      `json:"inUse"`
	Owner string    `json:"owner,omitempty"`
	Mode  string    `json:"mode,omitempty"`
}

func listMounts(a *app.App) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ls [flags]",
		Short: "List cache mounts",
		Long: `List the cache mounts of the root directory with how many files each has, how large these are and when a step used them last. A cache mount
that was made by an earlier kiln has no ID until a step uses it.`,
		Example: `  kiln cache mounts ls
  kiln cache mounts ls --format json`,
		Args: app.ExactArgs(),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			return withMounts(cmd.Context(), a, func(l *local) error {
				rows, err := l.rows(cmd.Context())
				if err != nil {
					return err
				}
				if format == "json" {
					return printJSON(a.Stdout, rows)
				}
				out := tabwriter.NewWriter(a.Stdout, 0, 8, 3, ' ', 0)
				fmt.Fprintln(out, "ID\tNAME\tSIZE\tFILES\tLAST USED")
				for _, r := range rows {
					used := units.HumanDuration(time.Since(r.Used)) + " ago"
					if r.InUse {
						used = "now"
					}
					fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%s\n", termtext.Line(r.ID), shortName(r.Name), report.Size(r.Size), r.Files, used)
				}
				return out.Flush()
			})
		}),
	}
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT` table, or json with an object for each cache mount")
	return cmd
}

func (l *local) rows(ctx context.Context) ([]mountRow, error) {
	all, err := cachemount.List(l.Root.Dir())
	if err != nil {
		return nil, err
	}
	var rows []mountRow
	for _, c := range all {
		r := mountRow{ID: c.ID, Name: c.Name, Used: c.Used.UTC(), InUse: lease.InUse(filepath.Join(c.Dir(l.Root.Dir()), cachemount.Lock))}
		if c.ID != "" {
			r.Owner, r.Mode = fmt.Sprintf("%d:%d", c.UID, c.GID), fmt.Sprintf("%04o", c.Mode)
		}
		if r.Files, r.Size, err = mounts.Measure(ctx, l.disk, filepath.Join(c.Dir(l.Root.Dir()), cachemount.Files)); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b mountRow) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Name, b.Name)) })
	return rows, nil
}

func removeMounts(a *app.App) *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "rm [flags] ID...",
		Short: "Remove cache mounts",
		Long:  "Remove cache mounts with their files. One that a build uses is not removed, and that is an error.\n\n" + aboutMounts,
		Example: `  kiln cache mounts rm /root/.npm
  kiln cache mounts rm --all --force`,
		Args: cobra.ArbitraryArgs,
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return app.UsageErrorf("say what to remove: the ID of a cache mount, or --all alone")
			}
			if all && !force {
				if err := a.Confirm(cmd, "all cache mounts"); err != nil {
					return err
				}
			}
			return withMounts(cmd.Context(), a, func(l *local) error {
				found, err := l.find(args)
				if all {
					found, err = cachemount.List(l.Root.Dir())
				}
				if err != nil {
					return err
				}
				return l.remove(a.Stdout, found)
			})
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "remove all cache mounts")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func (l *local) remove(out io.Writer, found []cachemount.Cache) error {
	p := cachemount.Part(l.Root.Dir(), l.tmp)
	var failed error
	for _, c := range found {
		gone, err := p.Remove(part.Item{ID: c.Name})
		if !gone && err == nil {
			err = cachemount.ErrInUse
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("the cache mount %q was not removed: %w", called(&c), err))
			continue
		}
		if _, err := fmt.Fprintf(out, "removed %s\n", termtext.Line(called(&c))); err != nil {
			return err
		}
	}
	return failed
}

func exportMounts(a *app.App) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export [flags] ID...",
		Short: "Write the files of cache mounts to a tar archive",
		Long: `Write the files of cache mounts to a tar archive, in a file or on standard output, with a directory for each. kiln cache mounts import reads
it. Devices, pipes and sockets are left out. A cache mount that a step has for itself is waited for.

` + aboutMounts,
		Example: `  kiln cache mounts export -o npm.tar /root/.npm
  kiln cache mounts export /go/pkg/mod /root/.cache/go-build | zstd > go.tar.zst`,
		Args: app.MinArgs("ID"),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			if output == "-" {
				output = ""
			}
			if output == "" && termtext.IsTerminal(os.Stdout) {
				return app.UsageErrorf("an archive is not written to a terminal: use --output, or redirect standard output")
			}
			if output != "" {
				if err := values.CheckArchive(output); err != nil {
					return app.UsageErrorf("--output: %w", err)
				}
				if err := rootdir.Absolute(&output); err != nil {
					return err
				}
			}
			return withMounts(cmd.Context(), a, func(l *local) error {
				found, err := l.find(args)
				if err != nil {
					return err
				}
				write := func(w io.Writer) error { return l.export(cmd.Context(), found, w) }
				if output == "" {
					return write(os.Stdout)
				}
				return exporter.WriteFile(output, write)
			})
		}),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` file to write (default standard output)")
	return cmd
}

func (l *local) export(ctx context.Context, found []cachemount.Cache, w io.Writer) error {
	var all []mounts.Mount
	for _, c := range found {
		if c.ID == "" {
			return fmt.Errorf("the cache mount %s is of an earlier kiln, and has no ID until a step uses it", shortName(c.Name))
		}
		held, err := lock.Acquire(ctx, filepath.Join(c.Dir(l.Root.Dir()), cachemount.Lock), true)
		if err != nil {
			return err
		}
		defer held.Release()
		files := filepath.Join(c.Dir(l.Root.Dir()), cachemount.Files)
		if _, err := os.Lstat(files); errors.Is(err, fs.ErrNotExist) {
			continue // no step has come to use it
		}
		all = append(all, mounts.Mount{Identity: c.Identity, Dir: files})
	}
	return mounts.WriteTar(ctx, l.disk, all, l.tmp, w)
}

func importMounts(a *app.App) *cobra.Command {
	var id, owner, mode string
	cmd := &cobra.Command{
		Use:   "import [flags] FILE",
		Short: "Read the files of cache mounts from a tar archive",
		Long: `Read the files of cache mounts from a tar archive that kiln cache mounts export wrote or, with --id, from any archive of the files of one; "-"
is standard input. The archive may be compressed with gzip or zstd. A cache mount that has files is not changed, and that is an error.
Steps find what is in the archive, and may execute it: import only archives of those you trust.`,
		Example: `  kiln cache mounts import npm.tar
  tar -C ~/.npm -c . | kiln cache mounts import --id /root/.npm -`,
		Args: app.ExactArgs("a FILE"),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			only, err := parseIdentity(id, owner, mode)
			if err != nil {
				return err
			}
			in := cmd.InOrStdin()
			if args[0] != "-" {
				if err := rootdir.Absolute(&args[0]); err != nil {
					return err
				}
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				if info, err := f.Stat(); err == nil && info.IsDir() {
					return app.UsageErrorf("%s is a directory, and not an archive", rootdir.Shown(args[0]))
				}
				in = f
			} else if termtext.IsTerminal(in) {
				return app.UsageErrorf("an archive is not read from a terminal: name a file, or redirect standard input")
			}
			return withMounts(cmd.Context(), a, func(l *local) error {
				err := mounts.ReadTar(cmd.Context(), l.disk, in, only, l.Root.Archive, l.tmp, func(m mounts.Mount) error {
					err := cachemount.Fill(l.Root.Dir(), m.Dir, m.Identity)
					if errors.Is(err, fs.ErrExist) {
						err = fmt.Errorf("it has files: kiln cache mounts rm %s removes them", m.ID)
					}
					if err != nil {
						return fmt.Errorf("the cache mount %q was not imported: %w", m.ID, err)
					}
					_, err = fmt.Fprintf(a.Stdout, "imported %s\n", termtext.Line(m.ID))
					return err
				})
				if err != nil {
					return fmt.Errorf("import %s: %w", rootdir.Shown(args[0]), err)
				}
				return nil
			})
		}),
	}
	cmd.Flags().StringVar(&id, "id", "", "`ID` of the cache mount that all files of the archive are of")
	cmd.Flags().StringVar(&owner, "owner", "0:0", "`UID:GID` with --id, the uid= and gid= of the cache mount")
	cmd.Flags().StringVar(&mode, "mode", "0755", "`MODE` with --id, the mode= of the cache mount")
	return cmd
}

// parseIdentity reads the flags that say which cache mount files are of; nil if the archive says so itself.
func parseIdentity(id, owner, mode string) (*cachemount.Identity, error) {
	out := &cachemount.Identity{ID: id}
	if strings.HasPrefix(id, "/") {
		out.ID = path.Clean(id)
	}
	var rest string
	if n, _ := fmt.Sscanf(owner+" ", "%d:%d%s", &out.UID, &out.GID, &rest); n != 2 || out.UID < 0 || out.GID < 0 {
		return nil, app.UsageErrorf("--owner %q is not UID:GID, such as 1000:1000", owner)
	}
	if n, _ := fmt.Sscanf(mode+" ", "%o%s", &out.Mode, &rest); n != 1 || out.Mode > 0o7777 {
		return nil, app.UsageErrorf("--mode %q is not the octal mode of a directory, such as 0755", mode)
	}
	if id == "" {
		if owner != "0:0" || mode != "0755" {
			return nil, app.UsageErrorf("--owner and --mode need --id")
		}
		return nil, nil
	}
	return out, nil
}
