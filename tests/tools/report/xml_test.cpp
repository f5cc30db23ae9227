#include "tests/tools/report/xml.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace shardplan::report {
namespace {

TEST(Xml, ReadsElementsAttributesTextAndEntities) {
  const XmlElement root = parse_xml("<a b=\"1.5\" c-d=\"x &amp; &quot;y&quot;\"><e/>one &lt; two<f>g</f></a>\n");
  EXPECT_EQ(root.name, "a");
  EXPECT_EQ(root.number("b"), 1.5);
  EXPECT_EQ(root.attribute("c-d"), "x & \"y\"");
  EXPECT_EQ(root.text, "one < two");
  ASSERT_EQ(root.children.size(), 2U);
  EXPECT_EQ(root.child("f")->text, "g");
}

TEST(Xml, RefusesWhatIsNotWellFormed) {
  for (const char* text :
       {"", "a", "<a>", "<a></b>", "<a/><b/>", "<a b=1/>", "<a b=\"1/>", "<a b=\"1\" b=\"2\"/>", "<a b=\"<\"/>",
        "<a>&</a>", "<a>&nbsp;</a>", "<a b=\"1\"c=\"2\"/>", "<a><b></a></b>", "<a>\x01</a>", "<a>\xff</a>", "<1/>"}) {
    EXPECT_THROW(parse_xml(text), std::runtime_error) << text;
  }
}

}  // namespace
}  // namespace shardplan::report
