// Boost.JSON itself: its library part, compiled here and nowhere else.
#include <boost/json/src.hpp>
