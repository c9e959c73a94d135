package proxy

import "slices"

// isQueryNow tells that the server works on a Query.
func (f *flow) isQueryNow() bool {
	o := f.current()
	return o != nil && o.kind == opQuery
}

// dropSyncs drops those behind a Query that takes data, which the server will ignore: up to the end
// of the data, if that was sent.
func (f *flow) dropSyncs() {
	if f.ops[f.head].ended {
		return
	}
	from := f.head + 1
	to := from
	for to < len(f.ops) && f.ops[to].kind == opSync {
		to++
	}
	hasEnd := to < len(f.ops) && f.ops[to].kind == opCopyEnd
	if to == from || f.endSent && !hasEnd {
		return
	}
	f.ops = slices.Delete(f.ops, from, to)
}

// enterCopyIn drops the Syncs that the server will ignore: those before the client's CopyDone or
// CopyFail.
func (f *flow) enterCopyIn() {
	kept := f.head + 1
	ended := false
	f.unsynced = 1 // the COPY itself
	for i := kept; i < len(f.ops); i++ {
		o := f.ops[i]
		if !ended && o.kind == opSync {
			continue
		}
		if o.kind == opCopyEnd && !ended {
			ended = true
			continue
		}
		f.ops[kept] = o
		kept++
		if o.kind != opCopyEnd {
			f.unsynced++
		}
		if o.endsBatch() {
			f.unsynced = 0
		}
	}
	f.ops = f.ops[:kept]
	f.copyIn = !ended
}
