package records

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	control "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/store"
)

// recordTypes are BuildKit's names for what kiln keeps. Of all other kinds it is typeInternal.
var recordTypes = map[part.Kind]string{
	part.Layer:   "regular",
	part.Mount:   "exec.cachemount",
	part.Git:     "source.git.checkout",
	part.Context: "source.local",
}

const typeInternal = "internal"

// ofHistory reports whether an item is for people to read: clients ask for it, and delete it, as history.
func ofHistory(it part.Item) bool { return it.Kind == part.Build }

// usageRecord returns an item as clients see it. When it was made is not known: it was not later than it was used.
func usageRecord(it part.Item, inUse bool) *control.UsageRecord {
	used := timestamppb.New(it.Used)
	rec := &control.UsageRecord{
		ID: string(it.Kind) + ":" + it.ID, Mutable: it.Kind == part.Mount || it.Kind == part.Context, InUse: inUse, Size: it.Size,
		CreatedAt: used, LastUsedAt: used, UsageCount: 1, Description: it.Description, RecordType: recordTypes[it.Kind], Shared: it.Shared,
	}
	if rec.RecordType == "" {
		rec.RecordType = typeInternal
	}
	if rec.Description == "" {
		rec.Description = string(it.Kind)
	}
	if it.Base != "" {
		rec.Parents = []string{string(part.Layer) + ":" + it.Base}
	}
	return rec
}

// usageFilter returns what matches one of containerd's filters on the fields of usage records; without filters everything does.
func usageFilter(all []string) (func(*control.UsageRecord) bool, error) {
	if err := checkFilters(all); err != nil {
		return nil, err
	}
	filter, err := filters.ParseAll(all...)
	if err != nil {
		return nil, &QueryError{fmt.Sprintf("parse filters %q: %v", all, err)}
	}
	return func(rec *control.UsageRecord) bool {
		return filter.Match(filters.AdapterFunc(func(path []string) (string, bool) {
			if len(path) == 0 {
				return "", false
			}
			switch path[0] {
			case "id":
				return rec.ID, true
			case "parents":
				if len(rec.Parents) > 0 {
					return rec.Parents[0], true
				}
			case "description":
				return rec.Description, rec.Description != ""
			case "type":
				return rec.RecordType, true
			case "inuse":
				return "", rec.InUse
			case "mutable":
				return "", rec.Mutable
			case "immutable":
				return "", !rec.Mutable
			case "shared":
				return "", rec.Shared
			case "private":
				return "", !rec.Shared
			}
			return "", false
		}))
	}, nil
}

// DiskUsage returns what the root directory keeps that can be removed.
func DiskUsage(ctx context.Context, root *store.Root, req *control.DiskUsageRequest) (*control.DiskUsageResponse, error) {
	match, err := usageFilter(req.Filter)
	if err != nil {
		return nil, err
	}
	u, err := root.Usage(ctx)
	if err != nil {
		return nil, err
	}
	resp := &control.DiskUsageResponse{}
	for _, it := range u.Items {
		if ofHistory(it) || req.AgeLimit > 0 && time.Since(it.Used) < time.Duration(req.AgeLimit) {
			continue
		}
		if rec := usageRecord(it, u.InUse(it)); match(rec) {
			resp.Record = append(resp.Record, rec)
		}
	}
	return resp, nil
}

// Prune removes what is not used any more, within what the request says, and calls send for each thing that it has removed.
func Prune(ctx context.Context, root *store.Root, req *control.PruneRequest, send func(*control.UsageRecord) error) error {
	match, err := usageFilter(req.Filter)
	if err != nil {
		return err
	}
	o := store.PruneOptions{
		All: req.All, MaxUsed: req.MaxUsedSpace, MinFree: req.MinFreeSpace, Reserved: req.ReservedSpace,
		Keep: func(it part.Item) bool { return ofHistory(it) || !match(usageRecord(it, false)) },
	}
	for _, size := range []int64{req.MaxUsedSpace, req.MinFreeSpace, req.ReservedSpace, req.KeepDuration} {
		if size < 0 {
			return &QueryError{fmt.Sprintf("invalid limit %d", size)}
		}
	}
	if req.KeepDuration > 0 {
		o.Before = time.Now().Add(-time.Duration(req.KeepDuration))
	}
	_, err = root.Prune(ctx, o, func(it part.Item) error { return send(usageRecord(it, false)) })
	return err
}
