package apierr

import (
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
)

// MaxQuoted is how many bytes the sources have that one error quotes, maxQuotes how many places it names, and maxName how long the name of
// a file may be there.
const (
	MaxQuoted = 1 << 20
	maxQuotes = 100
	maxName   = 4 << 10
)

// Quotes returns places in sources, which at refers to by their index, as the details of an error have them. What is too much is left out.
func Quotes(at []*pb.Location, sources []*pb.SourceInfo) []*errdefs.Source {
	var all []*errdefs.Source
	room := MaxQuoted
	for _, l := range at[:min(len(at), maxQuotes)] {
		info := sources[l.SourceIndex]
		if len(info.GetFilename())+len(info.GetLanguage()) > maxName {
			continue
		}
		if size := info.SizeVT(); size <= room {
			room -= size
		} else {
			info = &pb.SourceInfo{Filename: info.GetFilename(), Language: info.GetLanguage()}
		}
		all = append(all, &errdefs.Source{Info: info, Ranges: l.Ranges[:min(len(l.Ranges), maxQuotes)]})
	}
	return all
}
