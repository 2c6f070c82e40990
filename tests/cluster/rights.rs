//! What the picker may do in a cluster and what it does: with exactly the rights that the chart gives it, every call is
//! allowed; and they are needed, as the API server's own log of calls shows.
