// Package rollout moves tenants wave by wave by a plan, and looks at each wave before
// it goes on to the next.
//
// A wave is a list of tenants or a percentage of all. Its tenants are wished into an
// inner stage, where both paths can be compared and the way back is immediate; they
// stay there for the wave's bake time; then every tenant is judged by the plan's
// gates. Only when all of them pass they are wished on to the plan's stage, and the
// next wave begins.
//
//	pending ─► running ──────────────────────────────────────────────► done
//	             │  choosing ─► flipping ─► baking ─► judging ─► finishing ─┐
//	             │     ▲                                              │
//	             │     └──────────────── next wave ───────────────────┘
//	             ├─ operator, gate fails (on_failure: hold), too little ─► paused ─► running
//	             │  traffic, a tenant that does not arrive, nobody left
//	             ├─ gate fails (on_failure: rollback) ──────────────────► failed
//	             └─ operator ───────────────────────────────────────────► aborted
//
// A rollout writes wishes where an operator writes them, under its own name ([By]),
// and nothing else: package bridge/control moves tenants and proves each step. A tenant
// under a hold is skipped. A tenant for whom somebody else has written a wish since is
// left alone. Both are reported, and neither passes for a tenant that was seen to work.
//
// [Step] decides and is pure. A [Drive] loop carries out what it decides, in one
// transaction with the rollout's row, so that it may be killed at any instruction:
//
//	crossfade_rollouts ─┐                       ┌─► crossfade_rollouts (by revision)
//	stages, flags,      ├─► Step (pure) ─► Change ─► crossfade_flag_targets
//	holds, measurements ┘                       └─► events
//	└────────────── one transaction, repeatable read ──────────────┘
package rollout
