package frontend

import (
	"path"

	"github.com/moby/buildkit/util/system"
)

// Paths in Dockerfiles for Windows have drives and backslashes, as BuildKit's package system knows them. In the graph they are as in any
// root file system: C:\app is /app.

// isWindows reports whether the stage makes a Windows image. It is known when the stage is lowered.
func (s *stage) isWindows() bool { return s.platform != nil && s.platform.OS == "windows" }

// cwd returns the working directory, absolute and cleaned, as a path in the root.
func (s *stage) cwd() (string, error) {
	if !s.isWindows() {
		return s.config.Cwd(), nil
	}
	return system.NormalizePath("/", s.config.WorkingDir(), "windows", false)
}

// pathIn returns a path in the root for one that a COPY names, which is relative to dir; a slash at its end stays.
func (s *stage) pathIn(dir, p string) (string, error) {
	if !s.isWindows() {
		return p, nil
	}
	return system.NormalizePath(dir, p, "windows", true)
}

// isAbs reports whether a WORKDIR is absolute.
func (s *stage) isAbs(dir string) bool {
	if s.isWindows() {
		return system.IsAbs(dir, "windows")
	}
	return path.IsAbs(dir)
}

// joinWorkdir returns the working directory of the stage after WORKDIR dir. An absolute one stays as it is written, but on Windows.
func (s *stage) joinWorkdir(current, dir string) (string, error) {
	if s.isWindows() {
		return system.NormalizeWorkdir(current, dir, "windows")
	}
	return joinWorkdir(current, dir), nil
}
